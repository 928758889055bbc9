#!/usr/bin/env bash
# From a fresh clone to a trained, measured model: bash scripts/quickstart.sh
#
# Makes .venv, prepares the human proteins of Swiss-Prot, trains the model of
# configs/quickstart.gin in runs/quickstart, evaluates it beside baselines, and
# evaluates the same weights under two other attentions. A second run goes on
# where the first one stopped.
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

if (($#)); then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  [[ $1 == -h || $1 == --help ]]
  exit
fi

work_dir=runs/quickstart
titin=Q8WZ42 # UniProt accession; 34,350 residues, the longest human protein

evaluate() {
  "$python" -m protein_lm.evaluate --work_dir="$work_dir" "$@"
}

stages 7

stage 'Python environment'
extras=quickstart
if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  say 'found an NVIDIA GPU'
  extras+=,cuda
fi
install "$extras"
cd "$root"

stage 'Data: human Swiss-Prot'
"$python" -m protein_lm.prepare --dataset=human_swissprot

stage "Training in $work_dir"
"$python" -m protein_lm.train --work_dir="$work_dir" \
  --gin_files=configs/quickstart.gin

stage 'Evaluation beside baselines'
evaluate --splits=validation,test,ood

stage 'The same weights with exact and with generalized attention'
evaluate --splits=validation \
  --gin_bindings='FlaxModel.attention_fn = @exact_attention()' >/dev/null
# Prints the rows of all three.
evaluate --splits=validation \
  --gin_bindings='FlaxModel.attention_fn = @make_fast_generalized_attention()'

stage 'What this was'
"$python" - "$work_dir" <<'PY'
import sys

import protein_lm
from protein_lm import checkpoint

run = protein_lm.load(sys.argv[1])
saved = checkpoint.manifest(sys.argv[1], run.step)['metadata']
epochs = run.step / run.open_data().steps_per_epoch
print(
  f'A demonstration: a small model after {saved["num_tokens"]:,.0f} tokens, '
  f'{epochs:.2f} epochs of one proteome. It shows that everything works, not '
  'what these models can do.'
)
PY

stage 'Titin, the longest human protein, in one pass without windows'
evaluate --one_pass="$titin"

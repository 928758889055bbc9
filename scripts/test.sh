#!/usr/bin/env bash
# Runs every check: bash scripts/test.sh [--all] [pytest arguments]
#
#   bash scripts/test.sh                      lint, format, all but slow tests
#   bash scripts/test.sh --all                slow tests too, on optimised programs
#   bash scripts/test.sh tests/configs_test.py -k quickstart
#
# Makes .venv at the first run. Exits 0 only if everything passed.
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

arguments=(-n 2)
for argument in "$@"; do
  case $argument in
    --all)
      arguments+=(-m '')
      # As users' programs are compiled; see tests/conftest.py.
      export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=3"
      ;;
    -h | --help)
      sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *) arguments+=("$argument") ;;
  esac
done

stages 4
stage 'Python environment'
install dev
cd "$root"

status=0
stage 'ruff check'
"$python" -m ruff check . || status=1
stage 'ruff format --check'
"$python" -m ruff format --check . || status=1

stage 'tests'
if ((status)); then
  say 'ruff failed (above), so this run fails whatever the tests say'
fi
"$python" -m pytest "${arguments[@]}" || status=$?
exit "$status"

# Sourced by test.sh and quickstart.sh: progress lines, Python, .venv, install.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
log=$venv/install.log

# Progress: 'stages N' once, then 'stage TEXT' N times.

stages() {
  num_stages=$1
  stage_number=0
  SECONDS=0
}

stage() {
  stage_number=$((stage_number + 1))
  printf '\n[%3d s] %d/%d %s\n' "$SECONDS" "$stage_number" "$num_stages" "$*"
}

say() {
  printf '[%3d s] %s\n' "$SECONDS" "$*"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

interrupted() {
  trap - INT TERM
  printf '\nInterrupted; run the same command to go on.\n' >&2
  exit 130
}
trap interrupted INT TERM

# Python.

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the first Python of at least 3.11; $PYTHON, if set, is the only choice.
find_python() {
  local name candidates=(python3 python3.13 python3.12 python3.11 python)
  if [[ -n ${PYTHON:-} ]]; then
    candidates=("$PYTHON")
  fi
  for name in "${candidates[@]}"; do
    if is_new_enough "$name"; then
      command -v "$name"
      return
    fi
  done
  die "Python 3.11 or newer is needed and '${candidates[0]}' is" \
    "$("${candidates[0]}" --version 2>/dev/null || echo absent);" \
    "install one, or say where it is: PYTHON=/path/to/python3.12 bash $0"
}

# Debian ships python3 without the means to make environments; root can add them.
add_venv_module() {
  if "$1" -c 'import ensurepip, venv' 2>/dev/null ||
    [[ $(id -u) != 0 || $(command -v "$1") != /usr/bin/* ]] ||
    ! command -v apt-get >/dev/null; then
    return 0
  fi
  say "adding Debian's python3-venv"
  {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv
  } >/dev/null 2>&1 || say 'apt-get could not add it'
}

# Makes .venv, also where the system's Python comes without ensurepip (Debian).
make_venv() {
  local base
  base=$(find_python)
  add_venv_module "$base"
  say "making .venv with $("$base" --version)"
  mkdir -p "$venv"
  touch "$venv/.made_by_scripts"
  if "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    "$base" -m venv "$venv"
  elif "$base" -c 'import venv, pip' 2>/dev/null; then
    "$base" -m venv --without-pip "$venv"
    "$base" -m pip --quiet --python "$python" install pip >>"$log" 2>&1 ||
      pip_failed
  elif "$base" -m virtualenv --version >/dev/null 2>&1; then
    "$base" -m virtualenv --quiet "$venv"
  else
    rm -rf "$venv"
    die "$base cannot make virtual environments; on Debian and Ubuntu:" \
      "apt-get install python3-venv"
  fi
}

venv_works() {
  [[ -x $python ]] && is_new_enough "$python" &&
    "$python" -m pip --version >/dev/null 2>&1
}

pip_failed() {
  if grep -qiE 'connection|resolution|resolve|timed? ?out|unreachable|proxy|ssl|retry' "$log" &&
    ! grep -qi 'ResolutionImpossible\|conflict' "$log"; then
    die "pip cannot reach the package index; check the network (or its proxy)" \
      "and run the same command again. Details: $log"
  fi
  tail -n 15 "$log" >&2
  die "pip failed as above. Details: $log"
}

# install EXTRAS: .venv holds this checkout with them, at the locked versions.
install() {
  local extras=$1 stamp=$venv/.installed-$1 wanted
  # A virtual environment does not survive a move, so the place counts too.
  wanted=$(cd "$root" && { cat setup.cfg pyproject.toml requirements.lock && pwd; } | cksum)
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && venv_works; then
    say ".venv is up to date"
    return
  fi
  if ! venv_works; then
    if [[ -e $venv && ! -e $venv/.made_by_scripts ]]; then
      die "$venv is not a working environment of Python 3.11 or newer with pip;" \
        "remove it and run the same command again"
    fi
    rm -rf "$venv"
    make_venv
  fi
  say "installing .[$extras] into .venv (a minute or two the first time)"
  (cd "$root" && PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES=${PIP_RETRIES:-2} \
    "$python" -m pip install -c requirements.lock -e ".[$extras]") \
    >"$log" 2>&1 || pip_failed
  printf '%s' "$wanted" >"$stamp"
  say "installed"
}

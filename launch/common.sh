# Read by the launchers: flags, checks, and commands that a dry run only prints.
# shellcheck shell=bash
# shellcheck disable=SC2034  # variables that the launchers read

dry_run=0
rest=()

# The comment at the top of the launcher is its help.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# parse NAMES ARGUMENTS...: sets a variable for every --name=value whose name is in NAMES (a string of words), and
# `rest` to what follows `--`.
parse() {
  local names=" $1 " argument flag
  shift
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --help) usage; exit 0 ;;
      --dry_run) dry_run=1 ;;
      --) rest=("$@"); return ;;
      --*=*)
        flag=${argument%%=*}
        flag=${flag#--}
        [[ $names == *" $flag "* ]] || fail "there is no flag --$flag; there are:$names"
        printf -v "$flag" '%s' "${argument#*=}"
        ;;
      *) fail "unexpected argument '$argument'; flags are --name=value, and the run's own follow after --" ;;
    esac
  done
}

need() {
  local flag
  for flag in "$@"; do
    [[ -n ${!flag:-} ]] || fail "--$flag=... is missing; see --help"
  done
}

whole_number() {
  local flag
  for flag in "$@"; do
    [[ ${!flag} =~ ^[1-9][0-9]*$ ]] || fail "--$flag=${!flag} is not a whole number above 0"
  done
}

# Names that Google Cloud, Kubernetes and Slurm all accept.
plain_name() {
  local flag
  for flag in "$@"; do
    [[ ${!flag} =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
      fail "--$flag='${!flag}' must be lower-case letters, digits and dashes, and begin with a letter"
  done
}

# The run's flags, which must name an experiment and where its files go.
need_run() {
  local words=" ${rest[*]:-} "
  [[ $words == *" --config="* ]] || fail "no --config=FILE after --"
  [[ $words == *" --workdir="* ]] || fail "no --workdir=DIR after --; it must be the same on every start, to continue"
}

need_program() {
  ((dry_run)) || command -v "$1" > /dev/null || fail "$1 is not installed; $2"
}

quoted() {
  local word words=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,%+-]+$ ]] || word=${word@Q}
    words+=" $word"
  done
  printf '%s' "${words# }"
}

# What an exit status says, to follow the name of what ended.
how_ended() {
  case $1 in
    75) echo "was asked to stop, or lost another process, with status 75: start it again and it goes on" ;;
    134) echo "was ended by JAX (signal 6), as when a process on another host is gone: start it again and it goes on" ;;
    137) echo "was killed (signal 9), for want of memory or by somebody: start it again and it goes on" ;;
    129 | 1[3-9]? | 2??) echo "was ended by signal $(($1 - 128)): start it again and it goes on" ;;
    *) echo "ended with status $1, an error; it has said which" ;;
  esac
}

# Runs a command, or prints it in a dry run.
run() {
  if ((dry_run)); then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

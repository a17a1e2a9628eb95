# SPDX-License-Identifier: Apache-2.0
#
# Completion of amla in bash: commands, options with their values, keys of problem strings with
# theirs, files. The program says what there is (amla complete).

_amla() {
  local line=${COMP_LINE:0:COMP_POINT} word before words program=${COMP_WORDS[0]} reply
  word=${line##* }
  local command=${COMP_WORDS[1]-}
  [ "$COMP_CWORD" -gt 1 ] || command=
  # Within a problem string: what follows the last comma.
  before=
  case $word in
  --*) ;;
  *,*) before=${word%,*}, ;;
  esac
  words=$("$program" complete ${command:+"$command"} 2> /dev/null)
  case ${word#"$before"} in
  *=*) ;;
  *) words=$(sed 's/=.*/=/' <<< "$words" | sort -u) ;; # values come when their key is there
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${word#"$before"}")
  COMPREPLY=("${COMPREPLY[@]/#/$before}")
  if [ -z "${COMPREPLY[*]}" ]; then
    compopt -o filenames 2> /dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
  # After "key=" and "name:" readline holds the rest for a word of its own.
  before=${word%"${word##*[=:]}"}
  COMPREPLY=("${COMPREPLY[@]#"$before"}")
  for reply in "${COMPREPLY[@]}"; do
    case $reply in *=) compopt -o nospace 2> /dev/null ;; esac
  done
}
complete -F _amla amla

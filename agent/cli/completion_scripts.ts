/**
 * What makes bash, zsh and fish complete the agent's command line: they hand over the words up to the cursor and show what comes back, so that
 * what can be completed is decided in one place (complete.ts), and peers are those of this moment.
 */
import { ASK_FOR_FILES } from "./complete.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/**
 * By COMP_LINE, since COMP_WORDS splits `direct=nas` in three; what bash then replaces is only what follows the "=". Works in the bash 3.2
 * of macOS, without bash-completion.
 */
const BASH = `# bash completion of tunnelmesh-agent
_tunnelmesh_agent() {
  local line="\${COMP_LINE:0:COMP_POINT}" words current reply
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  current="\${words[\${#words[@]} - 1]}"
  COMPREPLY=()
  while IFS=$'\\t' read -r reply _; do
    if [[ $reply == "${ASK_FOR_FILES}" ]]; then
      COMPREPLY=($(compgen -f -- "\${current##*=}"))
      compopt -o filenames 2>/dev/null
      return
    fi
    COMPREPLY+=("\${reply#"\${current%"\${current##*[=:]}"}"}")
  done < <("\${words[0]}" complete -- "\${words[@]:1}" 2>/dev/null)
}
complete -F _tunnelmesh_agent tunnelmesh-agent
`;

const ZSH = `#compdef tunnelmesh-agent
_tunnelmesh_agent() {
  local line
  local -a found
  for line in "\${(@f)$("\${words[1]}" complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    [[ -z $line ]] && continue
    if [[ $line == "${ASK_FOR_FILES}" ]]; then
      _files
      return
    fi
    found+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}")
  done
  _describe tunnelmesh-agent found
}
if [[ $funcstack[1] == _tunnelmesh_agent || $funcstack[1] == _tunnelmesh-agent ]]; then
  _tunnelmesh_agent "$@"
else
  compdef _tunnelmesh_agent tunnelmesh-agent
fi
`;

const FISH = `# fish completion of tunnelmesh-agent
function __tunnelmesh_agent
  set -l words (commandline -opc)
  set -l found ($words[1] complete -- $words[2..-1] (commandline -ct | string collect --allow-empty) 2>/dev/null)
  if test "$found[1]" = "${ASK_FOR_FILES}"
    __fish_complete_path (commandline -ct)
  else
    printf '%s\\n' $found
  end
end
complete -c tunnelmesh-agent -f -a '(__tunnelmesh_agent)'
`;

export const COMPLETION_SCRIPT: Readonly<Record<Shell, string>> = { bash: BASH, zsh: ZSH, fish: FISH };

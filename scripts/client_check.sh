#!/usr/bin/env bash
# Tries the programs that people use against a server of ours, with a real model: a table of what worked, and why not.
#
#   scripts/client_check.sh MODEL.gguf [CLIENT ...]
#
# Installs the clients from PyPI and npm into build/clients (needs node 20 or later) and starts a server on loopback.
# The model must follow instructions and have tools in its template. Coding agents send prompts of 6,000 to 20,000 tokens.
set -u
cd "$(dirname "$0")/.."
model=${1:?usage: scripts/client_check.sh MODEL.gguf [CLIENT ...]}
shift
here=$PWD/scripts/client_check dir=$PWD/build/clients python=$PWD/.venv/bin/python
mkdir -p "$dir/home"

# ---- the clients, each group in a virtual environment of its own: their dependencies exclude one another ------------------
environment() { # NAME PACKAGE...
    local name=$1
    shift
    [ -e "$dir/$name/.installed" ] && return
    "$python" -m venv "$dir/$name" && "$dir/$name/bin/pip" install --quiet httpx pydantic "$@" && touch "$dir/$name/.installed"
}
environment general 'lm-eval[api]' 'pydantic-ai-slim[openai]' instructor guidance outlines 'smolagents[openai]' || exit 2
environment anthropic 'pydantic-ai-slim[anthropic]' 'anthropic<1' || exit 2
environment index llama-index-llms-openai-like || exit 2
cp "$here/node_clients.mjs" "$dir/"
if [ ! -e "$dir/node_modules/.installed" ]; then
    (cd "$dir" && npm init -y >/dev/null && npm install --silent --no-audit --no-fund @openai/codex @anthropic-ai/claude-code \
        opencode-ai promptfoo ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic @langchain/openai @langchain/core \
        zod && touch node_modules/.installed) || exit 2
fi
export PATH="$dir/node_modules/.bin:$PATH"

# ---- the server -------------------------------------------------------------------------------------------------------------
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
"$python" -m pyllama_long serve -m "$model" --port "$port" --parallel 4 --alias local >"$dir/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null' EXIT
for _ in $(seq 120); do
    curl -sf "$url/health" >/dev/null && break
    kill -0 $server 2>/dev/null || { tail -n 5 "$dir/server.log"; exit 1; }
    sleep 1
done

# ---- coding agents ------------------------------------------------------------------------------------------------------------
codex_cli() {
    CODEX_HOME=$dir/home/.codex codex exec --skip-git-repo-check -m local -c model_provider=local \
        -c "model_providers.local={name=\"local\",base_url=\"$url/v1\",wire_api=\"responses\"}" "Say hello."
}
claude_code() {
    ANTHROPIC_BASE_URL=$url ANTHROPIC_API_KEY=none CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
        claude -p "Say hello." --model local
}
opencode_cli() {
    cat >"$dir/home/opencode.json" <<JSON
{"provider": {"local": {"npm": "@ai-sdk/openai-compatible", "name": "local", "options": {"baseURL": "$url/v1"},
 "models": {"local": {"name": "local"}}}}, "model": "local/local"}
JSON
    opencode run "Say hello."
}
in_home() { (export HOME=$dir/home && mkdir -p "$HOME/.codex" && cd "$HOME" && "$@" </dev/null); }
export -f codex_cli claude_code opencode_cli in_home
export dir url

# ---- the table ------------------------------------------------------------------------------------------------------------------
worst=0 rows=()
try() { # CLIENT SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return
    local start=$SECONDS code
    timeout "$limit" "$@" >"$dir/$name.log" 2>&1
    code=$?
    local result=worked note
    [ $code -eq 0 ] || result=failed worst=1
    note=$(grep -v '^ *$' "$dir/$name.log" | tail -n 1 | tr -d '\000-\037' | cut -c1-100)
    [ $code -ne 124 ] || note="nothing within $limit s"
    rows+=("$(printf '%-20s %-7s %4d s  %s' "$name" $result $((SECONDS - start)) "$note")")
    printf '%s\n' "${rows[-1]}"
}
wanted=("$@")
for name in lm_eval pydantic_chat pydantic_responses instructor guidance outlines smolagents promptfoo; do
    try $name 300 "$dir/general/bin/python" "$here/python_clients.py" "$url" $name
done
try pydantic_anthropic 300 "$dir/anthropic/bin/python" "$here/python_clients.py" "$url" pydantic_anthropic
try llama_index 300 "$dir/index/bin/python" "$here/python_clients.py" "$url" llama_index
for name in ai_sdk_openai ai_sdk_openai_chat ai_sdk_compatible ai_sdk_anthropic langchain; do
    try $name 300 node "$dir/node_clients.mjs" "$url" $name
done
try codex 900 bash -c 'in_home codex_cli'
try opencode 900 bash -c 'in_home opencode_cli'
try claude_code 1800 bash -c 'in_home claude_code'
exit $worst

#!/usr/bin/env bash
# Installs llama_cpp, the Python bindings, without their own copy of llama.cpp: the libraries of this project replace it.
#
#   scripts/install_bindings.sh PYTHON [OPTION OF pip install]...
#
# From the sdist as a file: of a package that is installed by name, pip would keep the wheel, which lacks the library, and
# hand it to other environments.
set -eu
python=$1
shift
sdist=$("$python" "$(dirname "$0")/vendor.py" sdist)
CMAKE_ARGS=-DLLAMA_BUILD=OFF exec "$python" -m pip install --quiet --no-deps "$@" "$sdist"

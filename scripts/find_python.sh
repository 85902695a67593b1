#!/bin/sh
# Prints the Python that .venv is built with: the one named ($1), else the first on PATH that is 3.11 to 3.13.
# Where there is none it prints one line that begins with "error:" and exits with 1.
# Plain sh, since it must run where no such Python is.

if [ -n "${1:-}" ]; then
    got="no Python ($1)"
    set -- "$1"
else
    got="none"
    set -- python3 python3.13 python3.12 python3.11
fi

for python in "$@"; do
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    case $version in
    3.11.* | 3.12.* | 3.13.*)
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            exit 0
        fi
        got="$version ($python) without its venv module (Debian and Ubuntu: package python${version%.*}-venv)"
        ;;
    *)
        if [ "$got" = none ] || [ $# -eq 1 ]; then got="$version ($python)"; fi
        ;;
    esac
done
echo "error: txtrain needs Python 3.11 to 3.13, got $got: install one, or name one: make setup PYTHON=python3.12"
exit 1

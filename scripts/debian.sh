#!/usr/bin/env bash
# Install what gpc's packages need of Debian or Ubuntu and is missing: scripts/debian.sh PYTHON [draw]
# With "draw" also what MuJoCo needs to draw without a screen, and the browser in which the tests open pages. Elsewhere nothing is done; gpc doctor names what is missing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
command -v apt-get > /dev/null || exit 0
libraries=$(ldconfig -p)
packages=()
library() { [[ $libraries == *"$1"* ]] || packages+=("$2"); }
python() { "$1" -c "import sys, sysconfig, os.path; $2" 2> /dev/null || packages+=("python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$3"); }

python "$1" 'import ensurepip, venv' venv
python "$1" 'sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' dev  # evdev is compiled
command -v cc > /dev/null || packages+=(gcc libc6-dev)
library libGL.so.1 libgl1  # OpenCV
library libglib-2.0.so.0 libglib2.0-0
if [ "${2:-}" = draw ] && [[ $libraries != *libOSMesa* ]]; then
    # Debian 13 has no OSMesa any more: there EGL draws on the processor
    if [ "$(id -u)" = 0 ]; then apt-get -q update > /dev/null; fi
    if apt-cache show libosmesa6 > /dev/null 2>&1; then packages+=(libosmesa6); else library libEGL_mesa libegl1\ libegl-mesa0; fi
fi
if [ "${2:-}" = draw ] && ! command -v chromedriver > /dev/null; then
    # Ubuntu's chromium is a snap, which a container cannot install: there the browser test is skipped
    if . /etc/os-release && [ "$ID" = debian ]; then packages+=(chromium chromium-driver); fi
fi
[ ${#packages[@]} -gt 0 ] || exit 0
command="apt-get install -y ${packages[*]}"
if [ "$(id -u)" != 0 ]; then
    echo "packages of the system are missing; run this, then make again:  sudo $command" >&2
    exit 1
fi
echo "$command"
apt-get -q update > /dev/null
DEBIAN_FRONTEND=noninteractive $command > /dev/null

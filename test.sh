#!/usr/bin/env bash
# Everything that is checked before a change lands: formatting, lints, documentation, tests, of Rust and of Python. Needs Rust, Python from 3.10 on
# and a network; installs what some tests need beside: a software Vulkan driver, a C++ compiler and Chromium, where it may, and names them where it may not, and
# the Python packages of python/requirements-test.txt, into a virtual environment beside the build.
set -euo pipefail
cd "$(dirname "$0")"

packages=(libvulkan1 mesa-vulkan-drivers g++)
# any of its names will do
command -v chromium chromium-browser google-chrome >/dev/null || packages+=(chromium)
missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
  done
fi
if ((${#missing[@]})); then
  if ((EUID == 0)); then
    echo "installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "not installed: ${missing[*]}. Tests on Vulkan, on CUDA and of the report in a browser are left out; as root: apt-get install ${missing[*]}" >&2
  fi
fi

target="${CARGO_TARGET_DIR:-$PWD/target}"
venv="$target/python-venv"
if ! cmp -s python/requirements-test.txt "$venv/requirements-test.txt"; then
  echo "installing the packages of python/requirements-test.txt"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r python/requirements-test.txt
  cp python/requirements-test.txt "$venv/requirements-test.txt"
fi

cargo fmt --all --check
"$venv/bin/ruff" format --check -q python
"$venv/bin/ruff" check -q python
# the tests' build first: it compiles what the lints, the documentation and the wheel then find done
cargo test --release --workspace
cargo clippy --release --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --document-private-items

rm -rf "$target/wheels"
CARGO_TARGET_DIR="$target" "$venv/bin/maturin" build --release --quiet --out "$target/wheels"
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$target"/wheels/*.whl
"$venv/bin/mypy"
"$venv/bin/pytest"

#!/usr/bin/env bash
# Everything that is checked before a change lands: formatting, lints, documentation, tests. Needs Rust and a network;
# installs what some tests need beside, a software Vulkan driver and Chromium, where it may, and names it where it may not.
set -euo pipefail
cd "$(dirname "$0")"

packages=(libvulkan1 mesa-vulkan-drivers)
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
    echo "not installed: ${missing[*]}. Tests on Vulkan and of the report in a browser are left out; as root: apt-get install ${missing[*]}" >&2
  fi
fi

cargo fmt --all --check
# the tests' build first: it compiles what the lints and the documentation then find done
cargo test --release --workspace
cargo clippy --release --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --document-private-items

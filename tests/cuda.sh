#!/usr/bin/env bash
# Every kernel test, and every golden architecture, on CUDA where there is no GPU: tests/cuda-on-cpu runs the kernels on the processor and tells of
# races, values that nobody wrote, accesses out of bounds and divergent barriers. Takes an hour and more; the test command has a choice of it.
#
#     tests/cuda.sh [BINARY GOLDENS PYTHON]     GOLDENS has check.py; PYTHON has numpy and polars
# ORDERS="forward reverse random:1" and CAPABILITIES="90 80" say in which order threads get their turn, and what the device can do.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${CARGO_TARGET_DIR:-$PWD/target}/cuda-on-cpu"
sh tests/cuda-on-cpu/build.sh "$out"
export CUDA_PATH="$out" LD_LIBRARY_PATH="$out" CUDA_ON_CPU_CACHE="$out/kernels" TANGLESCOPE_VULKAN=none
# what cubek's products of 16 bits and CubeCL's own guards are known for is no fault of ours
unknown() { grep -v "matmul_entry_.*race by the letter" | grep -v "copy_kernel_.*guarded"; }
for capability in ${CAPABILITIES-90 80}; do
  for order in ${ORDERS-forward reverse random:1}; do
    echo "compute capability $capability, threads $order"
    export CUDA_ON_CPU_ARCH=$capability CUDA_ON_CPU_ORDER=$order CUDA_ON_CPU_LOG="$out/log-$capability-$order"
    cargo test --release --workspace --test on_device -- --nocapture 2>&1 | tee "$out/said"
    if grep "^CUDA on the CPU: " "$out/said" | unknown; then
      echo "faults at compute capability $capability, threads $order" >&2
      exit 1
    fi
  done
done
if (($# == 3)); then
  # how far rounding to f32 takes a model's Grams is the model's own (random weights near zero): a device may be as far off as the CPU in f32, up to the order of
  # its sums, which counts fourfold
  check() { "$3" "$2/check.py" "$1" "$2" "$architecture" f32 "$4" "$5"; }
  failed=()
  export CUDA_ON_CPU_LOG="$out/log-goldens"
  rm -f "$CUDA_ON_CPU_LOG"
  for architecture in $(cd "$2" && ls -d */ | tr -d /); do
    off=$(check "$@" 1 cpu | sed 's/.*worst error \([^ ]*\).*/\1/')
    check "$@" "$("$3" -c "print(max(1e-5, 4 * $off))")" cuda || failed+=("$architecture")
  done
  if ((${#failed[@]})); then
    echo "further off than rounding: ${failed[*]}" >&2
    exit 1
  fi
  if grep "^fault" "$CUDA_ON_CPU_LOG" | unknown; then
    echo "faults in the goldens' kernels" >&2
    exit 1
  fi
fi

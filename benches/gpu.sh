#!/usr/bin/env bash
# Checks and measurements on a machine that has a GPU and no network.
#
#   benches/gpu.sh build            here: one stripped binary and what goes with it, into gpu-run/ (under 64 MiB)
#   benches/gpu.sh run [FOLDER]     there, in the same folder: everything below; tables and JSON into FOLDER [gpu-run/out]
#   benches/gpu.sh dry-run          here: the same steps at a tiny size on whatever devices there are
#
# `run` makes its models on the spot. On CUDA and on Vulkan: `verify` on the goldens' models (device against f64 on the CPU);
# the kernels' roofline table; the pass at the shape of Llama-3-8B's blocks, LoRA r = 64 on q, k, v and full scope, in f32 and
# bf16; and the same work in PyTorch, if there is one. A step that fails is said and does not end the others.
set -uo pipefail
cd "$(dirname "$0")/.."
here=gpu-run
binary=$here/tanglescope

build() {
  set -e
  cargo build --release -p tanglescope
  mkdir -p "$here"
  strip -o "$binary" "${CARGO_TARGET_DIR:-target}/release/tanglescope"
  gzip -9 -f "$binary"
  cp -r tests/golden "$here/"
  cp benches/pytorch_pass.py "$here/"
  for model in "$here"/golden/*/; do
    python3 - "$model" <<'PYTHON'
import json, sys
pairs = json.load(open(f"{sys.argv[1]}/golden.json"))["pairs"]
keys = ("prompt_ids", "chosen_ids", "rejected_ids")
with open(f"{sys.argv[1]}/pairs.jsonl", "w") as file:
    file.writelines(json.dumps({key: pair[key] for key in keys}) + "\n" for pair in pairs)
PYTHON
  done
  local bytes
  bytes=$(du -sb "$here" | cut -f1)
  echo "$here: $((bytes >> 20)) MiB"
  ((bytes < 64 << 20)) || { echo "more than 64 MiB" >&2; exit 1; }
}

unpack() { [[ -x $binary ]] || { gunzip -kf "$binary.gz" && chmod +x "$binary"; }; }

failed=0
step() { # NAME COMMAND…: its output into NAME.txt, and its time
  local name=$1 start=$SECONDS
  shift
  echo "== $name: $*"
  "$@" >"$out/$name.txt" 2>"$out/$name.err"
  local code=$?
  tail -n 40 "$out/$name.txt"
  if ((code)); then
    failed=$((failed + 1))
    echo "!! $name failed with $code after $((SECONDS - start)) s: $(tail -n 3 "$out/$name.err")"
  else
    echo "   $((SECONDS - start)) s"
  fi
}

# DEVICES: as --device takes them; SHAPE: options of bench; TORCH: options of pytorch_pass.py
measure() {
  mkdir -p "$out"
  (nvidia-smi -q 2>/dev/null || true) >"$out/machine.txt"
  step devices "$binary" devices
  for device in $devices; do
    for model in "$here"/golden/*/; do
      for scope in lora full; do
        local adapter=()
        [[ $scope == lora ]] && adapter=(--adapter "$model/adapter")
        step "verify-$device-$(basename "$model")-$scope" "$binary" verify --device "$device" --scope "$scope" \
          --model "$model" --data "$model/pairs.jsonl" --pairs "$checked" "${adapter[@]}"
      done
    done
    for dtype in $dtypes; do
      step "kernels-$device-$dtype" "$binary" bench --device "$device" --dtype "$dtype" --kernels-only "${shape[@]}"
      for scope in lora full; do
        step "pass-$device-$dtype-$scope" "$binary" bench --device "$device" --dtype "$dtype" --scope "$scope" \
          --lora-r "$rank" --lora-targets q_proj,k_proj,v_proj "${shape[@]}" --format json
      done
    done
  done
  if python3 -c "import torch" 2>/dev/null; then
    for dtype in $dtypes; do
      for scope in lora full; do
        for method in official hooks; do
          step "pytorch-$dtype-$scope-$method" python3 "$here/pytorch_pass.py" --method "$method" --scope "$scope" \
            --dtype "$dtype" --lora-r "$rank" "${torch[@]}"
        done
      done
    done
  else
    echo "!! no torch: the rival was left out"
  fi
  compare
  echo "$failed steps failed; results in $out"
}

# Pairs a second beside PyTorch's, from the files.
compare() {
  python3 - "$out" <<'PYTHON'
import glob, json, os, re, sys
read = lambda path: json.loads(open(path).read() or "null")
rivals = {}
for path in glob.glob(f"{sys.argv[1]}/pytorch-*.txt"):
    _, dtype, scope, method = os.path.basename(path)[:-4].split("-")
    try:
        rivals[dtype, scope, method] = read(path)["seconds_a_pair"]
    except Exception:
        pass
print("| device | dtype | scope | pairs/s | efficiency | times official | times hooks | memory GiB |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for path in sorted(glob.glob(f"{sys.argv[1]}/pass-*.txt")):
    match = re.match(r"pass-(.+)-(\w+)-(\w+)\.txt", os.path.basename(path))
    try:
        report = read(path)
    except Exception:
        continue
    if not report:
        continue
    (_, dtype, scope), ours = match.groups(), report["pass"]
    ratio = lambda method: f"{rivals[dtype, scope, method] * ours['pairs_per_second']:.2f}" if (dtype, scope, method) in rivals else "–"
    memory = ours["memory_bytes"]
    print(f"| {report['device']} | {dtype} | {scope} | {ours['pairs_per_second']:.3f} | {ours['efficiency']:.2f} | {ratio('official')} | {ratio('hooks')} | {memory / 2**30 if memory else 0:.2f} |")
PYTHON
}

case ${1:-} in
  build) build ;;
  run)
    out=${2:-$here/out}
    unpack
    devices="cuda vulkan" dtypes="f32 bf16" checked=2 rank=64
    shape=(--shape llama-3-8b --layers 4 --prompt 256 --response 128 --pairs 8)
    torch=(--device cuda --layers 4 --prompt 256 --response 128 --pairs 8 --lora-targets q_proj,k_proj,v_proj)
    measure | tee "$out.log"
    ;;
  dry-run)
    out=${2:-$here/dry}
    unpack
    devices="cpu vulkan" dtypes="f32" checked=1 rank=4
    shape=(--shape demo --prompt 8 --response 4 --pairs 2 --repeats 1)
    torch=(--device cpu --layers 2 --hidden 64 --heads 4 --kv-heads 2 --head-dim 16 --mlp 128 --vocabulary 200
      --prompt 8 --response 4 --pairs 2 --repeats 1 --lora-targets q_proj,k_proj,v_proj)
    measure
    exit "$failed"
    ;;
  *) sed -n '2,10p' "$0"; exit 2 ;;
esac

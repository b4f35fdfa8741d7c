#!/usr/bin/env bash
# Checks and measurements on a machine that has a GPU and no network.
#
#   benches/gpu.sh build [GOLDEN…]          here: one stripped binary and what goes with it, and more folders of models with a
#                                           golden.json, into gpu-run/ (under 64 MiB)
#   benches/gpu.sh run [FOLDER [STEPS]]     there, in the same folder: everything below; tables and JSON into FOLDER
#                                           [gpu-run/out]; of STEPS, a pattern of grep -E, only those
#   benches/gpu.sh dry-run [FOLDER [STEPS]] here: the same steps at a tiny size on whatever devices there are
#
# `run` makes its models on the spot. On CUDA and on Vulkan: the kernels against f64 in every type (the test on_device), and
# `verify` on the goldens' models (device against f64 on the CPU, f32 and bf16); the kernels' roofline table; the pass at the
# shape of Llama-3-8B's blocks, LoRA r = 64 on q, k, v and full scope, in f32 and bf16; and the same work in PyTorch, if there
# is one. A step that fails, or takes more than $LIMIT seconds [300], is said and does not end the others.
set -uo pipefail
cd "$(dirname "$0")/.."
here=$PWD/gpu-run
binary=$here/tanglescope

build() { # GOLDEN…
  set -e
  rm -rf "$here"
  mkdir -p "$here/golden"
  # what the tests build, so that nothing compiles twice; the command line's own tests bring the binary
  local test
  test=$(cargo test --release --workspace --no-run --message-format json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("target", {}).get("name") == "on_device" and built.get("executable"):
        print(built["executable"])')
  pack "$(dirname "$(dirname "$test")")/tanglescope" tanglescope
  pack "$test" on_device
  cp benches/pytorch_pass.py "$here/"
  local golden
  for golden in tests/golden/*/golden.json tests/golden/architectures/qwen3_5_moe_text/golden.json "${@/%//golden.json}"; do
    cp -r "$(dirname "$golden")" "$here/golden/"
  done
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

pack() { # FILE NAME: without symbols, and small
  strip -o "$here/$2" "$1"
  gzip -9 -f "$here/$2"
}

unpack() {
  local name
  for name in tanglescope on_device; do
    [[ -x $here/$name ]] || { gunzip -kf "$here/$name.gz" && chmod +x "$here/$name"; }
  done
  # CubeCL compiles with NVRTC and the toolkit's headers
  local nvcc
  if [[ -z ${CUDA_PATH:-} ]] && nvcc=$(command -v nvcc); then
    export CUDA_PATH=${nvcc%/bin/nvcc}
  fi
  if [[ -n ${CUDA_PATH:-} ]]; then
    export LD_LIBRARY_PATH="$CUDA_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  fi
  # programs keep the kernels that they compiled, for each build of ours apart: CubeCL's key has a kernel's name and not its text
  printf '[compilation]\ncache = { file = "%s" }\n' "$here/kernels/$(cksum <"$binary" | tr ' ' -)" >"$here/cubecl.toml"
}

failed=0
step() { # NAME COMMAND…: its output into NAME.txt, and its time
  local name=$1 start=$SECONDS
  shift
  [[ $name =~ $steps ]] || return 0
  echo "== $name: $*"
  (cd "$here" && exec timeout "${LIMIT:-300}" "$@" >"$out/$name.txt" 2>"$out/$name.err")
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
  out=$(cd "$out" && pwd)
  (nvidia-smi -q 2>/dev/null || true) >"$out/machine.txt"
  step devices "$binary" devices
  # kernels against f64 on the CPU, where no driver is a program: a GPU's own Vulkan driver, and CUDA
  step kernels-against-f64 env TANGLESCOPE_VULKAN=any "$here/on_device" --nocapture
  for device in $devices; do
    if [[ $device != cpu ]] && ! "$binary" devices --format json | usable "$device"; then
      echo "!! no $device device that is a GPU: left out"
      continue
    fi
    for model in "$here"/golden/*/; do
      for scope in lora full; do
        [[ $scope == full || -d $model/adapter ]] || continue
        for dtype in $dtypes; do
          local adapter=()
          [[ $scope == lora ]] && adapter=(--adapter "$model/adapter")
          step "verify-$device-$dtype-$(basename "$model")-$scope" "$binary" verify --device "$device" --dtype "$dtype" \
            --scope "$scope" --model "$model" --data "$model/pairs.jsonl" --pairs "$checked" "${adapter[@]}"
        done
      done
    done
    for dtype in $dtypes; do
      step "kernels-$device-$dtype" "$binary" bench --device "$device" --dtype "$dtype" --kernels-only "${shape[@]}"
      for scope in lora full; do
        step "pass-$device-$dtype-$scope" "$binary" bench --device "$device" --dtype "$dtype" --scope "$scope" \
          --lora-r "$rank" --lora-targets q_proj,k_proj,v_proj "${shape[@]}" --pass-only --format json
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

# Whether the list of devices has one of a kind that is no program; in a dry run programs do.
usable() { # KIND
  python3 -c 'import json, sys
kind, programs = sys.argv[1], sys.argv[2] == "1"
devices = json.load(sys.stdin)["devices"]
sys.exit(not any(d["device"].startswith(kind) and (programs or not d["software"]) for d in devices))' "$1" "$programs"
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
        rivals[dtype, scope, method] = read(path)
    except Exception:
        pass
print("| device | dtype | scope | pairs/s | of our products' rate | of PyTorch's | times official | times hooks | GiB | official GiB |")
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for path in sorted(glob.glob(f"{sys.argv[1]}/pass-*.txt")):
    match = re.match(r"pass-(.+)-(\w+)-(\w+)\.txt", os.path.basename(path))
    try:
        report = read(path)
    except Exception:
        continue
    if not report:
        continue
    (_, dtype, scope), ours = match.groups(), report["pass"]
    rival = lambda method, value: value(rivals[dtype, scope, method]) if (dtype, scope, method) in rivals else "–"
    ratio = lambda method: rival(method, lambda r: f"{r['seconds_a_pair'] * ours['pairs_per_second']:.2f}")
    achieved = ours["pairs_per_second"] * ours["operations_per_pair"]
    print(f"| {report['device']} | {dtype} | {scope} | {ours['pairs_per_second']:.3f} | {ours['efficiency']:.2f} "
          f"| {rival('official', lambda r: '%.2f' % (achieved / r['products']))} | {ratio('official')} | {ratio('hooks')} "
          f"| {(ours['memory_bytes'] or 0) / 2**30:.2f} | {rival('official', lambda r: '%.2f' % (r['peak_bytes'] / 2**30))} |")
PYTHON
}

case ${1:-} in
  build) build "${@:2}" ;;
  run)
    out=${2:-$here/out} steps=${3:-.} programs=0
    unpack
    devices="cuda vulkan" dtypes="f32 bf16" checked=2 rank=64
    shape=(--shape llama-3-8b --layers 4 --prompt 256 --response 128 --pairs 8)
    torch=(--device cuda --layers 4 --prompt 256 --response 128 --pairs 8 --lora-targets q_proj,k_proj,v_proj)
    measure | tee "$out.log"
    ;;
  dry-run)
    out=${2:-$here/dry} steps=${3:-.} programs=1
    unpack
    devices="cpu vulkan" dtypes="f32" checked=1 rank=4
    shape=(--shape demo --prompt 8 --response 4 --pairs 2 --repeats 1)
    torch=(--device cpu --layers 2 --hidden 64 --heads 4 --kv-heads 2 --head-dim 16 --mlp 128 --vocabulary 200
      --prompt 8 --response 4 --pairs 2 --repeats 1 --lora-targets q_proj,k_proj,v_proj)
    measure
    exit "$failed"
    ;;
  *) sed -n '2,15p' "$0"; exit 2 ;;
esac

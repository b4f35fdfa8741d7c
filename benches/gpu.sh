#!/usr/bin/env bash
# Checks and measurements on a machine that has a GPU and no network.
#
#   benches/gpu.sh build [GOLDEN…]          here: one stripped binary and what goes with it, and more folders of models with a
#                                           golden.json, into gpu-run/ (under 64 MiB)
#   benches/gpu.sh run [FOLDER [STEPS]]     there, in the same folder: everything below; tables and JSON into FOLDER
#                                           [gpu-run/out]; of STEPS, a pattern of grep -E, only those
#   benches/gpu.sh dry-run [FOLDER [STEPS]] here: the same steps at a tiny size on whatever devices there are
#
# `run` makes its models on the spot, and begins with what tells most: whether it runs (`devices`, one pass); the pass at the
# shape of Llama-3-8B's blocks, LoRA r = 64 on q, k, v and full scope, beside the same work in PyTorch; where its time goes
# (ncu); the kernels against f64 in every type (the test on_device) and their roofline table; weights that are copied for each
# use; `analyze`, `tokens` and `interference` on a checkpoint of eight such blocks; `verify` on the goldens' models (device
# against f64 on the CPU); then the same on Vulkan. A step that fails, or takes more than $LIMIT seconds [90], is said and does
# not end the others; none begins after $BUDGET seconds [1500]. A run that is cut off leaves what it has: every step's output
# is in FOLDER when the step ends, and all of it in FOLDER.tar.gz; `log` there has what was said.
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
  cp benches/pytorch_pass.py benches/made_up_model.py "$here/"
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
  xz -6 -T0 -f "$here/$2"
}

unpack() {
  local name
  for name in tanglescope on_device; do
    # Python has xz everywhere
    [[ -x $here/$name ]] || python3 - "$here/$name" <<'PYTHON'
import lzma, os, shutil, sys
with lzma.open(f"{sys.argv[1]}.xz") as packed, open(sys.argv[1], "wb") as file:
    shutil.copyfileobj(packed, file)
os.chmod(sys.argv[1], 0o755)
PYTHON
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
  if ((SECONDS > ${BUDGET:-1500})); then
    echo "-- $name: no time left"
    return 0
  fi
  (cd "$here" && exec timeout "${LIMIT:-90}" "$@" >"$out/$name.txt" 2>"$out/$name.err")
  local code=$?
  echo "== $name: $((SECONDS - start)) s: $*"
  # of checks those that did not pass, and how many did
  grep -v ^pass "$out/$name.txt" | tail -n 6 | cut -c1-400
  if ((code)); then
    failed=$((failed + 1))
    echo "!! $name failed with $code: $(tail -n 3 "$out/$name.err" | cut -c1-600)"
  fi
  keep
}

# All that there is so far as one file, whole at any moment.
keep() {
  tar -czf "$out.part" -C "$(dirname "$out")" "$(basename "$out")" && mv "$out.part" "$out.tar.gz"
}

# The pass at a shape, and PyTorch's.
passes() { # DEVICE DTYPE SCOPE…
  local device=$1 dtype=$2 scope
  for scope in "${@:3}"; do
    step "pass-$device-$dtype-$scope" "$binary" bench --device "$device" --dtype "$dtype" --scope "$scope" "${lora[@]}" "${shape[@]}" \
      --layers "$layers" --pass-only --json
  done
}

rivals() { # DTYPE
  local scope method
  python3 -c "import torch" 2>/dev/null || { echo "!! no torch: the rival was left out"; return; }
  for scope in lora full; do
    for method in official hooks; do
      step "pytorch-$1-$scope-$method" python3 "$here/pytorch_pass.py" --method "$method" --scope "$scope" --dtype "$1" "${torch[@]}"
    done
  done
}

# Where the time of the pass goes, by kernel.
profile() { # DTYPE SCOPE…
  local scope
  command -v ncu >/dev/null || { echo "!! no ncu: the profile was left out"; return; }
  for scope in "${@:2}"; do
    step "profile-$1-$scope" ncu --clock-control none --metrics gpu__time_duration.sum --csv --log-file "$out/profile-$1-$scope.csv" \
      "$binary" bench --device cuda --dtype "$1" --scope "$scope" "${lora[@]}" "${shape[@]}" --layers 2 --pass-only --repeats 1 --json
    [[ -f $out/profile-$1-$scope.csv ]] || continue
    python3 - "$out/profile-$1-$scope.csv" <<'PYTHON' || true
import collections, csv, sys
rows = csv.DictReader(line for line in open(sys.argv[1]) if line.startswith('"'))
times = collections.defaultdict(list)
for row in rows:
    unit = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "nsecond": 1e-6, "usecond": 1e-3, "msecond": 1.0}.get(row["Metric Unit"], 1e-6)
    times[row["Kernel Name"].split("(")[0][:70]].append(float(row["Metric Value"].replace(",", "")) * unit)
whole = sum(map(sum, times.values()))
print(f"all launches, warming up among them: {whole:.1f} ms")
for name, each in sorted(times.items(), key=lambda of: -sum(of[1]))[:25]:
    print(f"{sum(each) / whole:6.1%} {sum(each):9.2f} ms {len(each):6} launches  {name}")
PYTHON
  done
}

# The commands on a checkpoint in files, with its weights on the device and copied for each use.
commands() { # DEVICE
  local at=$here/model data=$here/model/pairs.jsonl
  python3 -c "import torch, safetensors" 2>/dev/null || { echo "!! no torch: the commands on a checkpoint were left out"; return; }
  [[ -f $data ]] || step model python3 "$here/made_up_model.py" "$at" "${made[@]}"
  [[ -f $data ]] || return 0
  local on=(--model "$at" --data "$data" --device "$1" --dtype "${dtypes##* }" "${lora[@]}")
  step "analyze-$1" "$binary" analyze "${on[@]}" --out "$here/records/analyze-$1"
  step "analyze-$1-copied" "$binary" analyze "${on[@]}" --out "$here/records/copied-$1" --memory "$little"
  step "interference-$1" "$binary" interference "${on[@]}" --out "$here/records/interference-$1"
  step "tokens-$1" "$binary" tokens "${on[@]}" --out "$here/records/tokens-$1" --limit 8
}

kernels() { # DEVICE
  local dtype
  for dtype in $dtypes; do
    step "kernels-$1-$dtype" "$binary" bench --device "$1" --dtype "$dtype" --kernels-only "${lora[@]}" "${shape[@]}" --layers 1
  done
}

verify() { # DEVICE DTYPE…
  local model scope dtype
  for dtype in "${@:2}"; do
    for model in "$here"/golden/*/; do
      for scope in lora full; do
        [[ $scope == full || -d $model/adapter ]] || continue
        local adapter=()
        [[ $scope == lora ]] && adapter=(--adapter "$model/adapter")
        step "verify-$1-$dtype-$(basename "$model")-$scope" "$binary" verify --device "$1" --dtype "$dtype" \
          --scope "$scope" --model "$model" --data "$model/pairs.jsonl" --pairs "$checked" "${adapter[@]}"
      done
    done
  done
}

# The most telling steps first: whoever is cut off has them.
measure() {
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  (nvidia-smi -q 2>/dev/null || true) >"$out/machine.txt"
  step devices "$binary" devices
  for device in $devices; do
    if [[ $device != cpu ]] && ! "$binary" devices --format json | usable "$device"; then
      echo "!! no $device device that is a GPU: left out"
      continue
    fi
    for dtype in $(tr ' ' '\n' <<<"$dtypes" | tac); do
      passes "$device" "$dtype" lora full
      [[ $device == vulkan ]] || rivals "$dtype"
    done
    [[ $device == cuda ]] && step pass-cuda-tf32-lora "$binary" bench --device cuda --tf32 --scope lora "${lora[@]}" "${shape[@]}" --layers "$layers" \
      --pass-only --json
    [[ $device == cuda ]] && profile "${dtypes##* }" lora full
    compare
    # kernels against f64 on the CPU; of Vulkan by the GPU's own driver, and not by one that is a program
    case $device in
      cuda) LIMIT=240 step "kernels-against-f64-cuda" env TANGLESCOPE_VULKAN=none "$here/on_device" --nocapture ;;
      vulkan) LIMIT=240 step "kernels-against-f64-vulkan" env TANGLESCOPE_VULKAN=any CUDA_VISIBLE_DEVICES= "$here/on_device" --nocapture \
        --skip on_cuda_on_the_processor ;;
    esac
    kernels "$device"
    local of=(--device "$device" --dtype "${dtypes##* }" "${lora[@]}" "${shape[@]}" --layers "$many" --pass-only --json)
    step "kept-$device" "$binary" bench "${of[@]}"
    step "copied-$device" "$binary" bench "${of[@]}" --memory "$little"
    commands "$device"
    verify "$device" $dtypes $more
  done
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
    devices="cuda vulkan" dtypes="f32 bf16" more=f16 checked=2 little=6
    shape=(--shape llama-3-8b --prompt 256 --response 128 --pairs 8) layers=4 many=8
    lora=(--lora-r 64 --lora-targets q_proj,k_proj,v_proj) made=()
    torch=(--device cuda --layers 4 --prompt 256 --response 128 --pairs 8 "${lora[@]}")
    mkdir -p "$out"
    measure 2>&1 | tee "$out/log"
    ;;
  dry-run)
    out=${2:-$here/dry} steps=${3:-.} programs=1
    unpack
    devices="cpu vulkan" dtypes="f32" more="" checked=1 little=1
    shape=(--shape demo --prompt 8 --response 4 --pairs 2) layers=2 many=3
    lora=(--lora-r 4 --lora-targets q_proj,k_proj,v_proj)
    tiny=(--hidden 64 --heads 4 --kv-heads 2 --head-dim 16 --mlp 128 --vocabulary 200 --prompt 8 --response 4 --pairs 2)
    made=(--layers 2 "${tiny[@]}")
    torch=(--device cpu --layers 2 "${tiny[@]}" --repeats 1 "${lora[@]}")
    measure
    exit "$failed"
    ;;
  *) sed -n '2,18p' "$0"; exit 2 ;;
esac

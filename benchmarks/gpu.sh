#!/usr/bin/env bash
# What a first contact with a GPU has to tell, most valuable first, in 12 minutes at most: benchmarks/gpu.sh --help
set -uo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

usage="usage: benchmarks/gpu.sh [--only a,c] [--out DIR] [--wheels DIR] [--data DIR] [--cpu] [--seconds N] [--at-most N]

  a  loads, smoke test, the bits of eager snnTorch   f  recurrent layers beside cuDNN
  b  the suite's tests on the device                 g  spikes x weights in three bfloat16 parts
  c  rate-fc: accuracy, seconds of an epoch          h  compute-sanitizer: memcheck, racecheck
  d  the LIF layer, share of copy bandwidth          i  first calls, calls of one step
  e  the Open Neuromorphic benchmark

  --only    stages to run (all)
  --out     a new folder for stages.jsonl, LETTER.json and LETTER.log (build/gpu-DATE)
  --wheels  snnfast and peers as wheels, installed into a folder in --out; nothing is downloaded
  --data    holds MNIST/raw (\$SNNFAST_DATA); without it scikit-learn's digits
  --cpu     tiny sizes on the CPU: also where there is no GPU
  --seconds of all stages together (690)
  --at-most seconds for each stage, where that is less than its own
PYTHON names the interpreter. Exits with 1 if a stage failed or was cut off."

only= out= wheels= cpu= total=690 most=690 data=${SNNFAST_DATA:-$repository/data}
while (($#)); do
    [[ $1 =~ ^--(cpu|help)$ || $# -gt 1 ]] || { echo "gpu.sh: $1 needs a value, or is unknown" >&2 && exit 2; }
    case $1 in
        --only) only=,$2, && shift ;;
        --out) out=$2 && shift ;;
        --wheels) wheels=$2 && shift ;;
        --data) data=$2 && shift ;;
        --seconds) total=$2 && shift ;;
        --at-most) most=$2 && shift ;;
        --cpu) cpu=1 ;;
        --help) echo "$usage" && exit ;;
        *) echo "gpu.sh: unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done
[[ -z $only || $only =~ ^(,[a-i])+,$ ]] || { echo "gpu.sh: --only takes letters from a to i, as in a,c" >&2 && exit 2; }
out=${out:-$repository/build/gpu-$(date -u +%Y-%m-%d-%H%M%S)}
mkdir -p "$(dirname "$out")" && mkdir "$out" && out=$(cd "$out" && pwd) || exit 2

if [ "$wheels" ]; then
    # Into a folder, not the interpreter's own: that may be everybody's.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$out/site" \
        "$wheels"/*.whl || exit 2
    export PYTHONPATH=$out/site${PYTHONPATH:+:$PYTHONPATH}
fi
[ "$cpu" ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || cpu=1

failed=0
stage() { # letter, seconds, title, command: runs it if it was chosen, for so long
    local letter=$1 limit=$2 title=$3 begin=$SECONDS status code
    shift 3
    [ -z "$only" ] || [[ $only == *,$letter,* ]] || return 0
    ((limit = limit < most ? limit : most, limit = limit < total - begin ? limit : total - begin))
    echo "--- $letter: $title, $limit s at most"
    code=124
    if ((limit > 0)); then
        timeout --kill-after=5 "$limit" "$python" "$@" --json "$out/$letter.json" >"$out/$letter.log" 2>&1
        code=$?
    fi
    case $code in
        0) status=passed ;;
        124 | 137) status="cut off" ;;
        *) status=failed ;;
    esac
    printf '{"stage": "%s", "title": "%s", "status": "%s", "exit": %d, "seconds": %d, "limit_s": %d}\n' \
        "$letter" "$title" "$status" "$code" $((SECONDS - begin)) "$limit" >>"$out/stages.jsonl"
    echo "$status after $((SECONDS - begin)) s"
    [ "$status" = passed ] || { failed=1 && tail -n 15 "$out/$letter.log"; }
}

# Away from the checkout, whose snnfast would stand before an installed one.
cd "$out" || exit 2
gpu=$repository/benchmarks/gpu.py run=$repository/benchmarks/run.py
if [ "$cpu" ]; then
    device=(--device cpu) few=(--quick --rounds 3)
    sizes=() tests=(--files test_surrogate.py --select "heaviside and cpu")
    peers=snntorch kernels=spikingjelly
else
    device=(--device cuda) few=()
    sizes=(4,64,16384 16,64,16384 64,64,16384 16,64,65536 4,64,262144 100,64,512 500,16,512 1000,64,64)
    sizes=(--sizes "${sizes[@]}") tests=()
    peers=snntorch kernels="spikingjelly-native spikingjelly-triton"
fi
stage a 60 "loads, smoke test, the bits of eager snnTorch" "$gpu" bits "${device[@]}"
stage b 150 "the suite's tests on the device" "$gpu" suite "${device[@]}" "${tests[@]}"
stage c 60 "rate-fc: accuracy, seconds of an epoch" "$gpu" epochs "${device[@]}" --data "$data"
stage d 120 "the LIF layer, share of copy bandwidth" "$run" --bench lif "${device[@]}" --seconds 3 --rounds 15 \
    "${few[@]}" "${sizes[@]}" --contenders snnfast $kernels
stage e 90 "the Open Neuromorphic benchmark" "$run" --bench onm "${device[@]}" --matmul float32 --seconds 4 --rounds 5 \
    "${few[@]}" --contenders snnfast $peers $kernels
stage f 45 "recurrent layers beside cuDNN" "$run" --bench rlif "${device[@]}" --seconds 3 --rounds 10 "${few[@]}" \
    ${sizes:+--sizes 100,32,256 500,32,256 500,32,512 100,256,1024} --contenders snnfast snnfast-rleaky torch-rnn
stage g 45 "spikes x weights in three bfloat16 parts" "$gpu" products "${device[@]}"
stage h 90 "compute-sanitizer: memcheck, racecheck" "$gpu" sanitizers "${device[@]}"
stage i 30 "first calls, calls of one step" "$run" --bench calls "${device[@]}" "${few[@]}" --contenders snnfast $peers
echo "$out/stages.jsonl"
exit $failed

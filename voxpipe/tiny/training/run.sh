#!/usr/bin/env bash
# Speaks, trains and watches at once, on the CUDA devices of one host: steps 5 and 6 of README.md.
#
#   run.sh KOKORO RUN INITIAL SECONDS [DELAY [options of train]]
#
# KOKORO is the synthesiser's pack. RUN holds sentences.tsv.xz, reading.tsv.xz, whisper.safetensors and recorded/ (index.tsv, .opus
# and .words.json of the lists), and gets logs and states. INITIAL is a state or a checkpoint folder. Training begins DELAY
# seconds from now (100: what loading and compiling takes) and ends SECONDS after that. The first SPEAKERS devices (1) speak all
# the time, half of it retold (`mosaic`), the others train; until training begins they speak too. With SPEAKERS=0 all of
# them do both in turn, and without a device to spare nobody watches. Copy RUN/out away as its states appear: they are all that is
# left of a run that is cut off. Every run speaks other sentences. WORKERS (3) processes speak on a device: each is bound by one core,
# needs 12 to 15 GB of the device and half a minute before it speaks; three load a device fully.
set -euo pipefail
kokoro=$1 run=$2 initial=$3 begin=$(($(date +%s) + ${5:-100})) here=$(cd "$(dirname "$0")" && pwd)
until=$((begin + $4))
lists=(train-librispeech train-speechocean762 train-kathleen train-commands train-wakewords train-wakewords2)
actors=(train-sky train-drascula train-queen)
n_devices=$(nvidia-smi -L | wc -l)
n_speakers=${SPEAKERS:-1} n_workers=${WORKERS:-3}
trainers=$([ "$n_devices" -gt "$n_speakers" ] && seq -s, "$n_speakers" $((n_devices - 1)) || echo 0)
export PYTHONPATH=$(dirname "$here") PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
mkdir -p "$run/synthetic" "$run/out"
python3 -c 'import sys, pathlib, training.collect as c; c.decode_ahead(pathlib.Path(sys.argv[1]), sys.argv[2:])' \
  "$run/recorded" "${lists[@]}" "${actors[@]}" other-engines

speak() { # DEVICE END
  local worker
  for worker in $(seq 0 $((n_workers - 1))); do
    OMP_NUM_THREADS=2 python3 -m training.synthesize --kokoro "$kokoro" --sentences "$run/sentences.tsv.xz" \
      --pieces "$here/pieces.json" --out "$run/synthetic" --device "cuda:$1" \
      --seed $((begin % 100000 + $1)) --shard "$worker" --n-shards "$n_workers" --until "$2" --mosaic 0.5 --recorded "$run/recorded" \
      --lists "${lists[@]}" --readers train-librispeech --teacher "$run/whisper.safetensors" \
      --retell train-librispeech train-kathleen train-speechocean762 "${actors[@]}" > "$run/speak-$1-$worker.log" 2>&1 &
  done
}

for device in $(seq 0 $((n_devices - 1))); do
  speak "$device" "$([ "$device" -lt "$n_speakers" ] && echo "$until" || echo "$begin")"
done
if [ "$n_speakers" -gt 0 ]; then
  CUDA_VISIBLE_DEVICES=0 python3 -m training.watch "$run/out" "$run/recorded" "$here/pieces.json" > "$run/watch.log" 2>&1 &
fi
CUDA_VISIBLE_DEVICES=$trainers OMP_NUM_THREADS=2 python3 -m torch.distributed.run \
  --nproc-per-node "$(tr ',' '\n' <<< "$trainers" | wc -l)" -m training.train --synthetic "$run/synthetic" \
  --recorded "$run/recorded" --lists "${lists[@]}" "${actors[@]}" other-engines --teacher "$run/whisper.safetensors" --pieces "$here/pieces.json" \
  --texts "$run/sentences.tsv.xz" "$run/reading.tsv.xz" \
  --mix "$here/mix.json" --initial "$initial" --out "$run/out" --begin "$begin" --until "$until" --bank-hours 120 \
  --workers 10 --save-s 60 "${@:6}" 2>&1 | tee "$run/train.log"
wait

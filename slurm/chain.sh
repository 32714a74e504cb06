#!/usr/bin/env bash
# Submits preprocessing, training, sampling and evaluation, each to begin when the one before it has ended well.
#
#     SCANS=adni/ NAME=adni bash slurm/chain.sh
#
# NAME names data/NAME, results/NAME, samples/NAME and evaluation/NAME, in the folder ROOT. A stage's flags go into PREPROCESS,
# TRAIN, SAMPLE, EVALUATE; sbatch's for one stage into SBATCH_FOR_PREPROCESS and so on, and for all into the variables that
# sbatch itself reads (SBATCH_ACCOUNT, SBATCH_PARTITION, ...). MULTI=1 trains on several GPUs. What is done is not done again:
# after a failure, the same command goes on.
set -eu
usage="SCANS=adni/ NAME=adni bash slurm/chain.sh"
: "${SCANS:?the folder of scans is not set; $usage}" "${NAME:?the name of the experiment is not set; $usage}"
here=$(dirname "$0")
root=${ROOT:-.}
data=$root/data/$NAME results=$root/results/$NAME samples=$root/samples/$NAME evaluation=$root/evaluation/$NAME
after=

# submit STAGE FILE FLAGS...: submits, and remembers the job for the next to wait for
submit() {
    local stage=$1
    shift
    after=$(sbatch --parsable ${after:+--dependency=afterok:$after --kill-on-invalid-dep=yes} "$@")
    after=${after%%;*}
    echo "$stage: job $after"
}

# The variables hold several words each
# shellcheck disable=SC2086
{
    if [ ! -e "$data/manifest.json" ]; then
        submit preprocess ${SBATCH_FOR_PREPROCESS:-} "$here/preprocess.sbatch" --input "$SCANS" --output "$data" ${PREPROCESS:-}
    fi
    submit train ${SBATCH_FOR_TRAIN:-} "$here/train${MULTI:+_multi}.sbatch" --data-path "$data" --results-dir "$results" \
        ${TRAIN:---ckpt weights/DiT-XL-2-512x512.pt}
    submit sample ${SBATCH_FOR_SAMPLE:-} "$here/sample.sbatch" --ckpt "$results" --output "$samples" ${SAMPLE:-}
    if [ ! -e "$evaluation/metrics.json" ]; then
        submit evaluate ${SBATCH_FOR_EVALUATE:-} "$here/evaluate.sbatch" --real "$data" --synthetic "$samples" --train "$data" \
            --output "$evaluation" ${EVALUATE:-}
    fi
}

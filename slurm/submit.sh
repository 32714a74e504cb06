#!/usr/bin/env bash
# Submits one stage with the account, partition and type of GPU that site.env names.
#
#     bash slurm/submit.sh train --data-path data/adni --ckpt weights/DiT-XL-2-512x512.pt
#     SBATCH_FLAGS="--time=24:00:00" bash slurm/submit.sh evaluate --real data/adni ...
#
# The stages are preprocess, train, train_multi, sample and evaluate; what follows are the flags of
# the script. SBATCH_FLAGS are flags of sbatch; they win over site.env. sample gets as many tasks as
# there are batches, at most 8, unless SBATCH_FLAGS say --array.
set -eu
usage="usage: bash slurm/submit.sh preprocess|train|train_multi|sample|evaluate FLAGS..."
here=$(cd "$(dirname "$0")" && pwd)
stage=${1:?$usage}
shift
[ -e "$here/$stage.sbatch" ] || { echo "submit.sh: no stage $stage; $usage" >&2; exit 2; }
# shellcheck source=site.env
. "${SITE_ENV:-$here/site.env}"
export SITE_ENV="${SITE_ENV:-$here/site.env}"
[ -z "$MOSAICDIT" ] || export MOSAICDIT

# has FLAG FLAGS...: whether FLAG, alone or with =value, is among the others
has() {
    local flag=$1 each
    shift
    for each; do
        [ "${each%%=*}" = "$flag" ] && return
    done
    return 1
}

# value_of FLAG DEFAULT FLAGS...: the value of a flag of the script, the last one if it is repeated
value_of() {
    local flag=$1 value=$2
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
            "$flag") value=${2:-$value} ;;
            "$flag"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

# SBATCH_FLAGS hold several words, so they are not quoted:
# shellcheck disable=SC2206
given=(${SBATCH_FLAGS:-})
flags=()
[ -z "$ACCOUNT" ] || has --account "${given[@]}" || flags+=("--account=$ACCOUNT")
partition=$GPU_PARTITION
gpus=1
case $stage in
    preprocess) partition=$CPU_PARTITION gpus=0 ;;
    train_multi) gpus=4 ;;
esac
[ -z "$partition" ] || has --partition "${given[@]}" || has -p "${given[@]}" ||
    flags+=("--partition=$partition")

# The files ask for GPUs by --gres. Slurm refuses --gres beside --gpus-per-node, so the latter is
# translated.
for i in "${!given[@]}"; do
    case ${given[i]} in
        --gpus-per-node=*) given[i]="--gres=gpu:${given[i]#*=}" ;;
    esac
done
[ $gpus = 0 ] || [ -z "$GPU_TYPE" ] || has --gres "${given[@]}" ||
    flags+=("--gres=gpu:$GPU_TYPE:$gpus")

if [ "$stage" = sample ] && ! has --array "${given[@]}" && ! has -a "${given[@]}"; then
    samples=$(value_of --num-samples 32 "$@")
    batch=$(value_of --batch-size 8 "$@")
    tasks=$(((samples + batch - 1) / batch))
    flags+=("--array=1-$((tasks < 8 ? tasks : 8))")
fi
exec sbatch --parsable "${flags[@]}" "${given[@]}" "$here/$stage.sbatch" "$@"

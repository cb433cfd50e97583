#!/usr/bin/env bash
# Measures the package on a GPU, within 9 minutes, and writes tables for docs/benchmarks.md:
#
#     tools/gpu_check.sh FOLDER [--smoke] [--wheels DIR] [--only SECTION,...]
#
# The sections run by importance, each with a time limit, and each writes FOLDER/SECTION.md as it
# measures. FOLDER/results.md joins them after every section, so that a run that is killed leaves
# what was measured. A section that fails is followed by the others; the exit code is then 1.
#
# --wheels: packages to use that are not installed. They are unpacked, nothing is installed.
# --smoke: all sections in small, on a CPU, in one or two minutes: whether the check itself works. There
# are no other limits than that of the whole.
# $PYTHON is the Python to use, by default python3. docs/performance.md describes the sections.
set -euo pipefail

refuse() {
    echo "tools/gpu_check.sh: $1" >&2
    exit 2
}

usage() {
    echo "usage: tools/gpu_check.sh FOLDER [--smoke] [--wheels DIR] [--only SECTION,...]" >&2
    echo "sections: ${sections[*]}" >&2
    exit 2
}

sections=(environment tests speed profiles commands peers decoders candidates)
# Seconds. Their sum is beyond TOTAL: sections that end early leave their time to the others.
declare -A limits=([environment]=30 [tests]=160 [speed]=170 [profiles]=50 [commands]=110
    [peers]=60 [decoders]=30 [candidates]=40)
TOTAL=530
fence="\`\`\`"
GRACE=10 # for a section to write what it has

command_line="tools/gpu_check.sh $*"
folder="" smoke="" wheels="" only=""
while (($#)); do
    case $1 in
    --smoke) smoke=--smoke ;;
    --wheels | --only)
        (($# > 1)) || usage
        [[ $1 == --wheels ]] && wheels=$2 || only=$2
        shift
        ;;
    -*) usage ;;
    *)
        [[ -z $folder ]] || usage
        folder=$1
        ;;
    esac
    shift
done
[[ -n $folder ]] || usage
for section in ${only//,/ }; do
    [[ " ${sections[*]} " == *" $section "* ]] || refuse "there is no section $section; sections: ${sections[*]}"
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
has_gpu=$("$python" -c "import torch; print(torch.cuda.is_available())") ||
    refuse "PYTHON=$python does not import torch"
[[ -n $smoke || $has_gpu == True ]] ||
    refuse "torch finds no CUDA device; with --smoke it needs none"
[[ -z $wheels ]] || compgen -G "$wheels/*.whl" >/dev/null || refuse "--wheels $wheels has no wheels"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
path=$root:$root/tools
if [[ -n $wheels ]]; then
    for wheel in "$wheels"/*.whl; do # compiled packages cannot be imported from a zip file
        "$python" -m zipfile -e "$wheel" "$folder/wheels"
    done
    path=$path:$folder/wheels
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$folder/compiled # empty in the first run, so that compiling is timed
cd "$root"

write_results() {
    {
        echo "## GPU check: $device"
        echo
        echo "Commit $commit, $date, command \`$command_line\`."
        local name
        for name in "${sections[@]}"; do
            if [[ -f $folder/$name.md ]]; then
                echo
                cat "$folder/$name.md"
            fi
        done
    } >"$folder/results.part"
    mv "$folder/results.part" "$folder/results.md"
}

run() { # SECTION SECONDS
    timeout --kill-after=5 $(($2 + GRACE)) "$python" -m gpu_checks "$1" "$folder" \
        --seconds "$2" $smoke >"$folder/$1.log" 2>&1
}

device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
device=${device:-no GPU}
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
date=$(date -u +%Y-%m-%d)
failed=0
compiling=""
for section in "${sections[@]}"; do
    [[ -z $only || ,$only, == *,$section,* ]] || continue
    left=$((TOTAL - SECONDS - GRACE))
    limit=$((limits[$section] < left && ${#smoke} == 0 ? limits[$section] : left))
    rm -f "$folder/$section.md"
    if ((limit < 5)); then
        printf '### %s\n\nNot run: the time was over.\n' "${section^}" >"$folder/$section.md"
        write_results
        continue
    fi
    if [[ $section == tests && (-z $only || ,$only, == *,speed,*) ]]; then
        run compile "$limit" & # beside the tests, which need no idle GPU; the next sections do
        compiling=$!
    fi
    echo "$section: at most $limit s" >&2
    code=0
    run "$section" "$limit" || code=$?
    if ((code)); then
        failed=1
        [[ -f $folder/$section.md ]] || printf '### %s\n' "${section^}" >"$folder/$section.md"
        {
            printf '\n**Failed** with exit code %d' "$code"
            ((code != 124 && code != 137)) || printf ' (its time limit)'
            printf '. The last lines of its output:\n\n%stext\n%s\n%s\n' \
                "$fence" "$(tail -n 12 "$folder/$section.log")" "$fence"
        } >>"$folder/$section.md"
    fi
    if [[ $section == tests && -n $compiling ]]; then
        wait "$compiling" || true # what it did not compile, the next sections do
    fi
    write_results
done
echo "results are in $folder/results.md" >&2
exit "$failed"

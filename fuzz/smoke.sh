#!/bin/sh
# Fuzzes every target for a while: fuzz/smoke.sh [SECONDS each, default 20] [TARGET...]
#
# Needs nothing but the stable toolchain of this workspace and a C++ compiler, which libFuzzer is
# built with. Without one it runs mutations of the corpus (fuzz/tests/replay.rs) for about as long.
# What libFuzzer finds is added to fuzz/corpus-new, failing inputs stand in fuzz/artifacts; run one
# again with its path as the only argument of the program.
set -eu
cd "$(dirname "$0")"
seconds=${1:-20}
[ $# -eq 0 ] || shift
targets=${*:-rx ops host_rx wire target connect config}
host=$(rustc -vV | sed -n 's/^host: //p')
# Instrumented code has a folder of its own, or every other build would start from nothing.
target_dir=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz

if ! command -v c++ >/dev/null; then
    echo "no C++ compiler: mutations of the corpus instead of libFuzzer"
    export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions" CARGO_TARGET_DIR="$target_dir"
    build="cargo test --release -p nvmf-fuzz --no-default-features --test replay"
    $build --no-run
    for target in $targets; do
        end=$(($(date +%s) + seconds))
        seed=1
        while [ "$(date +%s)" -lt "$end" ]; do
            NVMF_FUZZ_SEED=$seed NVMF_FUZZ_RUNS=20000 $build -q -- --exact "$target" >/dev/null
            seed=$((seed + 1))
        done
        echo "$target: $((seed * 20000 - 20000)) runs, nothing found"
    done
    exit 0
fi

# What cargo-fuzz passes, without the sanitizers that need an unstable compiler.
RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1 \
-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
-Cllvm-args=-simplifycfg-branch-fold-threshold=0"
export RUSTFLAGS
bins=""
for target in $targets; do bins="$bins --bin $target"; done
# With --target, build scripts and macros are not instrumented. Thin LTO would merge what is
# instrumented with what is not.
# shellcheck disable=SC2086
CARGO_PROFILE_RELEASE_LTO=off cargo build --release -p nvmf-fuzz $bins \
    --target "$host" --target-dir "$target_dir"

mkdir -p artifacts
for target in $targets; do
    mkdir -p "corpus-new/$target"
    log=artifacts/$target.log
    dict=""
    [ ! -f "dictionaries/$target.dict" ] || dict="-dict=dictionaries/$target.dict"
    # shellcheck disable=SC2086
    if ! "$target_dir/$host/release/$target" "corpus-new/$target" "corpus/$target" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
        $dict -print_final_stats=1 -artifact_prefix="artifacts/$target-" >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "$target: failed" >&2
        exit 1
    fi
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs, nothing found"
done

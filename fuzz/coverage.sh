#!/bin/sh
# Which lines of the parser and of command validation the corpora reach: fuzz/coverage.sh [-v] [FOLDER...]
#
# Runs every input of fuzz/corpus once, and of further folders with a folder per target, in a build that
# counts, and prints a table; with -v the lines that no input reaches too. Needs llvm-profdata and
# llvm-cov of the compiler's LLVM (`rustc -vV`): the component llvm-tools, or Debian's llvm-NN.
set -eu
cd "$(dirname "$0")"
verbose=
[ "${1:-}" != -v ] || { verbose=1; shift; }

# The parser; command validation.
files="
nvmf-proto/src/tcp/target/header.rs nvmf-proto/src/tcp/target/mod.rs nvmf-proto/src/tcp/target/rx.rs
nvmf-proto/src/tcp/target/slots.rs nvmf-proto/src/tcp/target/tx.rs
nvmf-target/src/conn/command.rs nvmf-target/src/conn/io/plan.rs nvmf-target/src/conn/admin.rs
nvmf-target/src/conn/fused.rs nvmf-target/src/ctrl/connect.rs"

major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
tool() {
    for path in "$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/$1" "$1-$major"; do
        if command -v "$path" >/dev/null; then echo "$path"; return; fi
    done
    echo "no $1 of LLVM $major: rustup component add llvm-tools, or apt-get install llvm-$major" >&2
    return 1
}
profdata=$(tool llvm-profdata)
cov=$(tool llvm-cov)

out=${CARGO_TARGET_DIR:-$PWD/../target}/coverage
rm -rf "$out/raw"
mkdir -p "$out/raw"
# Digests count as right, as they do when fuzzing.
export RUSTFLAGS="--cfg fuzzing -Cinstrument-coverage" CARGO_TARGET_DIR="$out" CARGO_INCREMENTAL=0
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
program=$(LLVM_PROFILE_FILE=/dev/null cargo test -q -p nvmf-fuzz --no-default-features --test replay --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
NVMF_FUZZ_RUNS=0 NVMF_FUZZ_CORPORA="$*" LLVM_PROFILE_FILE="$out/raw/%p.profraw" "$program" -q >"$out/log" 2>&1 ||
    { tail -n 40 "$out/log"; exit 1; }
"$profdata" merge -sparse "$out"/raw/*.profraw -o "$out/all.profdata"

cd ..
all=""
for file in $files; do all="$all $PWD/$file"; done
# shellcheck disable=SC2086
"$cov" export -format=lcov -instr-profile "$out/all.profdata" "$program" $all >"$out/lcov"
awk -v verbose="$verbose" -v root="$PWD/" '
    /^SF:/ { file = substr($0, 4); sub(root, "", file); lines[file] = hit[file] = 0; order[++n] = file }
    /^DA:/ {
        split(substr($0, 4), line, ",")
        lines[file]++
        if (line[2] > 0) hit[file]++
        else missed[file] = missed[file] " " line[1]
    }
    function row(name, of, all) { printf "| %-42s | %5d | %7d | %5.1f %% |\n", name, all, of, 100 * of / all }
    END {
        printf "| %-42s | lines | reached |         |\n", "file"
        print "| --- | ---: | ---: | ---: |"
        for (i = 1; i <= n; i++) {
            row(order[i], hit[order[i]], lines[order[i]])
            group = order[i] ~ /^nvmf-proto/ ? "tcp::target" : "command validation"
            sum[group] += lines[order[i]]; good[group] += hit[order[i]]
        }
        for (group in sum) row("all of " group, good[group], sum[group])
        if (verbose) for (i = 1; i <= n; i++) if (missed[order[i]]) print order[i] ":" missed[order[i]]
    }' "$out/lcov"

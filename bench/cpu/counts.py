#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the inner loops of the CPU kernels ask of a core, without hardware counters: counts.py BUILD prints, as Markdown,
cycles by llvm-mca's port models for the loops in the objects of a build (build/dev), and instructions by callgrind for
whole passes of `ringattn bench` (--callgrind CASE..., AVX2: valgrind knows no AVX-512). Needs objdump, llvm-mca 16 or
newer (--mca) and valgrind."""
import argparse, collections, os, re, subprocess, tempfile

MODELS = {'avx2': ('znver3', 'znver4', 'sapphirerapids'), 'avx512': ('znver4', 'sapphirerapids'),
          'avx512_bf16': ('znver4', 'sapphirerapids')}
MULTIPLY = re.compile(r'\bv(fmadd|fmsub|fnmadd|dpbf16)')
LOOKUP = re.compile(r'\bvperm(t2d|i2d|d|ps)\b')
LOOKUP_BESIDE_PARTS = re.compile(r'\bvperm[ti]2d\b')  # two parts of a value take a vpermd
# What is looked for: functions, the instruction that tells, and what a loop's work is counted in. The loop that does most
# is taken, but none of a soft cap's, whose tanh divides.
LOOPS = (('product, float32', r'product_.*Floats', MULTIPLY, 'multiply-adds'),
         ('product, pairs', r'product_.*PairsILi1E', re.compile('vdpbf16'), 'dot products'),
         ('product, pairs in two parts', r'product_.*PairsILi2E', re.compile('vdpbf16'), 'dot products'),
         ('weights', r'softmax_again_of.*WeightsE0E', LOOKUP, 'vectors'),
         ('weights, pairs', r'softmax_again_of.*WeightsE1E', LOOKUP, 'vectors'),
         ('weights, pairs in two parts', r'softmax_again_of.*WeightsE2E', LOOKUP_BESIDE_PARTS, 'vectors'),
         ('gradient', r'gradientERK', LOOKUP, 'vectors'),
         ('gradient, pairs', r'gradient_rowsILb0E', LOOKUP_BESIDE_PARTS, 'vectors'))


def functions(path):
    """name -> [(address, text)] of an object."""
    out = collections.defaultdict(list)
    name = None
    text = subprocess.run(['objdump', '-d', '--no-show-raw-insn', path], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        if head := re.match(r'[0-9a-f]+ <(.+)>:', line):
            name = head[1]
        elif code := re.match(r'\s*([0-9a-f]+):\s+(.*)', line):
            out[name].append((int(code[1], 16), code[2]))
    return out


def inner_loops(code):
    """Pieces of code from the target of a backward jump to it, without another one inside."""
    found = []
    for at, text in code:
        jump = re.match(r'j\w+\s+([0-9a-f]+) <', text)
        if jump and int(jump[1], 16) <= at:
            found.append((int(jump[1], 16), at))
    inner = [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [[t for at, t in code if begin <= at < end] for begin, end in inner]


def cycles(mca, model, loop):
    """Cycles of an iteration, by simulation of a hundred."""
    text = '\n'.join(re.sub(r'\s*(#|<).*', '', t) for t in loop if not t.startswith(('j', 'nop', 'cs nop', 'data16')))
    with tempfile.NamedTemporaryFile('w', suffix='.s') as f:
        f.write(text + '\n')
        f.flush()
        done = subprocess.run([mca, f'-mcpu={model}', '-iterations=100', f.name], capture_output=True, text=True)
    total = re.search(r'Total Cycles:\s+(\d+)', done.stdout)
    return int(total[1]) / 100 if total else None


def port_models(build, mca):
    print('| loop | instruction set | a turn | instructions | loads | stores | cycles a turn by model |\n|---|---|---|---|---|---|---|')
    for isa, models in MODELS.items():
        path = f'{build}/src/CMakeFiles/ringattn_kernels_{isa}.dir/cpu/kernels.cpp.o'
        if not os.path.exists(path):
            continue
        code = functions(path)
        for name, pattern, tells, unit in LOOPS:
            loops = [l for f in code if re.search(pattern, f) for l in inner_loops(code[f])]
            work = lambda l: sum(bool(tells.search(t)) for t in l)
            if not (loops := [l for l in loops if work(l) > 1 and not any('vdiv' in t for t in l)]):
                continue
            loop = max(loops, key=work)
            loads = sum('(' in t and not t.startswith(('lea', 'prefetch')) and not re.search(r',\S*\(\S*\)$', t) for t in loop)
            stores = sum(bool(re.match(r'vmov\w+\s+%[xyz]mm\d+,', t) and '(' in t) for t in loop)
            by_model = ', '.join(f'{m} {c:.1f}' for m in models if (c := cycles(mca, m, loop)) is not None)
            print(f'| {name} | {isa} | {work(loop)} {unit} | {len(loop)} | {loads} | {stores} | {by_model} |')


def instructions(build, case):
    """Instructions of the CPU backend's functions, one pass each and one that warms up."""
    with tempfile.TemporaryDirectory() as d:
        out = f'{d}/callgrind'
        subprocess.run(['valgrind', '--tool=callgrind', f'--callgrind-out-file={out}', f'{build}/bin/ringattn', 'bench',
                        case, '--isa', 'avx2', '--threads', '1', '--repeats', '1', '--quiet'], capture_output=True, check=True)
        text = subprocess.run(['callgrind_annotate', '--threshold=100', '--auto=no', out], capture_output=True, text=True, check=True).stdout
    pieces = collections.Counter()
    for line in text.splitlines():
        found = re.match(r'\s*([\d,]+) .*?ringattn::cpu::(?:\(anonymous namespace\)::)?(?:\w+::)*(\w+)[<(]', line)
        if found:
            pieces[found[2]] += int(found[1].replace(',', ''))
    return pieces


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('build', help='a build directory of this repository')
    p.add_argument('--mca', default='llvm-mca-19')
    p.add_argument('--callgrind', nargs='*', default=[], metavar='CASE', help='cases of `ringattn bench`')
    a = p.parse_args()
    port_models(a.build, a.mca)
    for case in a.callgrind:
        pieces = instructions(a.build, case)
        total = sum(pieces.values())
        print(f'\n`{case}`, AVX2: {total / 1e6:.1f} million instructions: ' +
              ', '.join(f'{n} {100 * c / total:.1f} %' for n, c in pieces.most_common(8)) + '.')


if __name__ == '__main__':
    main()

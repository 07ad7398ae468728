#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table of bars of the CPU backend: `make bench-cpu`. Every row is measured in several processes of `ringattn
bench`, each run beside the multiply-add peak of the same instruction set and number of threads; figures are medians over
processes. Rows that need what this machine lacks say so. With --jax-python and --torch-python the peers of peer.py
take turns with us. Writes JSON, and a drawing of every row against its bar."""
import argparse, json, math, os, re, statistics, subprocess, sys
from dataclasses import dataclass, field

from figure import draw

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Row:
    """One line of the table: cases of `ringattn bench`, and how their results become a figure."""
    name: str
    bar: float | None               # None: only to be known
    cases: list                     # share of peak: one case; ratios: two, (case, options) each
    which: str = 'forward'          # the pass
    isa: str = 'avx512'
    threads: tuple = (1,)
    ratio: str = ''                 # '': share of the peak; 'rate', 'time', 'overhead': of two cases
    unit: str = '%'
    head_dim: int = 0               # rows with a roof: see roof()
    products: int = 0               # that are done, where they are more than are counted
    arithmetic: float = 0           # 'overhead': time at the peak, us


# Cycles that softmax and its gradient take for 16 scores, by llvm-mca's models of Zen 4 and Sapphire Rapids (counts.py),
# and vectors of 16 multiply-adds a cycle.
PORTS = {'AMD': {'forward': {'avx2': 12.8, 'avx512': 8.8, 'avx512_bf16': 9.1}, 'forward with lse': {'avx512_bf16': 11.3},
                 'backward': {'avx2': 16.4, 'avx512': 9.1, 'avx512_bf16': 10.2}, 'rate': {'avx2': 1, 'avx512': 1}},
         'Intel': {'forward': {'avx2': 11.0, 'avx512': 8.6, 'avx512_bf16': 10.2}, 'forward with lse': {'avx512_bf16': 11.4},
                   'backward': {'avx2': 16.6, 'avx512': 8.6, 'avx512_bf16': 8.5}, 'rate': {'avx2': 1, 'avx512': 2}}}


def roof(row, peaks, device):
    """The row's limit, %. Shares of the peak: products of 2 (backward: 5) times D multiply-adds for a vector of scores,
    and beside them what the port model says of softmax; a dot product of pairs takes what the two measured peaks say. Low
    parts of weights and of dS take a product more, which no FLOPs are counted for: 2 of 3 and 5 of 6 are left. Ratios: two cores are twice one, a mask has no better rate than none, a ring takes no less time than one rank. None:
    not known."""
    if row.ratio == 'time':
        return 100
    if row.ratio == 'rate':
        return None if row.name.startswith('GQA') else 100 * row.threads[0]
    vendor = next((v for v in PORTS if v in device), None)
    if not row.head_dim or vendor is None:
        return None
    counted = 2 if row.which == 'forward' else 5
    cycles = row.head_dim / PORTS[vendor]['rate']['avx2' if row.isa == 'avx2' else 'avx512']  # of a product
    if row.isa == 'avx512_bf16':
        if not (peaks.get('avx512') and peaks.get('avx512_bf16')):
            return None
        cycles *= statistics.median(peaks['avx512']) / statistics.median(peaks['avx512_bf16'])
    ports = PORTS[vendor]['forward with lse' if row.products == 3 else row.which][row.isa]
    return 100 * counted * cycles / ((row.products or counted) * cycles + ports)


def rows():
    out = []
    for isa in ('avx512', 'avx2'):
        for d, bar_f, bar_b in ((64, 80, 78), (128, 84, 80)):
            out.append(Row(f'forward f32 D{d} {isa}', bar_f, [f'sq2048_h8_d{d}'], 'forward', isa, head_dim=d))
            out.append(Row(f'backward f32 D{d} {isa}', bar_b, [f'sq2048_h8_d{d}_bwd'], 'backward', isa, head_dim=d))
    for d, bar_f, bar_b in ((64, 73, 70), (128, 80, 75)):
        # Without `bwd` nobody asks for lse, and weights are rounded once: an inference.
        out.append(Row(f'forward bf16 D{d}, dot products', bar_f, [f'sq2048_h8_d{d}_bf16'], 'forward', 'avx512_bf16',
                       head_dim=d))
        out.append(Row(f'forward with lse bf16 D{d}, dot products', None, [f'sq2048_h8_d{d}_bf16_bwd'], 'forward',
                       'avx512_bf16', head_dim=d, products=3))
        out.append(Row(f'backward bf16 D{d}, dot products', bar_b, [f'sq2048_h8_d{d}_bf16_bwd'], 'backward',
                       'avx512_bf16', head_dim=d, products=6))
    for t in ('bf16', 'f16'):
        out.append(Row(f'forward {t} D128 avx2, widened', 77, [f'sq2048_h8_d128_{t}'], 'forward', 'avx2',
                       head_dim=128))
        out.append(Row(f'forward {t} D128 avx512, widened', 77, [f'sq2048_h8_d128_{t}'], 'forward', 'avx512',
                       head_dim=128))
    for p in ('forward', 'backward'):
        b = '_bwd' if p == 'backward' else ''
        out.append(Row(f'causal 4k / full, {p}', 90, [f'sq4096_h2_d64_causal{b}', f'sq4096_h2_d64{b}'], p,
                       ratio='rate'))
        out.append(Row(f'window 1024 of 8k / full, {p}', 80,
                       [f'sq8192_h1_d64_causal_w1023,0{b}', f'sq8192_h1_d64{b}'], p, ratio='rate'))
        for h in (8, 1):
            case = f'sq4096_h{h}_d64{b}'
            out.append(Row(f'two cores / one, H{h}, {p}', 190, [case, case], p, threads=(2, 1), ratio='rate'))
        out.append(Row(f'GQA 8/2 / MHA, {p}', 100, [f'sq2048_h8x2_d64{b}', f'sq2048_h8_d64{b}'], p, ratio='rate'))
        for r in (2, 4, 8):
            case = f'sq8192_h1_d128{b}'
            out.append(Row(f'ring of {r} / one rank, time, {p}', 105, [f'{case}_r{r}', case], p, threads=(2, 2),
                           ratio='time'))
    out.append(Row('S128 H8 D64: time over peak', 60, ['sq128_h8_d64'], ratio='overhead', unit='us'))
    return out


@dataclass
class Bench:
    tool: str
    wrapper: list
    repeats: int
    runs: list = field(default_factory=list)
    peaks: dict = field(default_factory=dict)  # of one core, by instruction set

    def passes(self, case, row, threads):
        """One process: its results by pass."""
        pin = ['taskset', '-c', ','.join(map(str, sorted(os.sched_getaffinity(0))[:threads]))]
        repeats = 200 if row.ratio == 'overhead' else self.repeats
        command = [*self.wrapper, *pin, self.tool, 'bench', case, '--isa', row.isa, '--threads', str(threads), '--repeats',
                   str(repeats), '--quiet', '--json']
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        results = {r['pass']: r for r in json.loads(done.stdout)['results']}
        if threads == 1:
            self.peaks.setdefault(row.isa, []).append(results[row.which]['peak_gflops'])
        return results

    def pass_of(self, case, row, threads):
        """One process: the result of the row's pass."""
        result = self.passes(case, row, threads)[row.which]
        self.runs.append(result)
        return result

    def figure(self, row):
        """One process per case, and the row's figure from them."""
        threads = row.threads if len(row.threads) > 1 else row.threads * 2
        got = [self.pass_of(case, row, t) for case, t in zip(row.cases, threads)]
        if row.ratio == '':
            return 100 * got[0]['peak_share']
        if row.ratio == 'overhead':
            row.arithmetic = got[0]['flops'] / got[0]['peak_gflops'] * 1e-3
            return got[0]['ms_median'] * 1e3 - row.arithmetic
        if row.ratio == 'time':
            return 100 * got[0]['ms_median'] / got[1]['ms_median']
        # Clocks change between the two: compare shares of the peak of one thread.
        a, b = (g['peak_share'] * t for g, t in zip(got, threads))
        return 100 * (a / b if row.threads == (1,) else got[0]['gflops'] / got[1]['gflops'])


def why_not(row, isas, cores):
    if row.isa not in isas:
        return f'this machine has no {row.isa} (it has {", ".join(isas)})'
    if max(row.threads) > cores:
        return f'needs {max(row.threads)} cores, there are {cores}'
    return ''


def met(row, figure):
    if row.bar is None:
        return None
    return figure <= row.bar if row.ratio in ('time', 'overhead') else figure >= row.bar


def geometric_mean(xs):
    return math.exp(statistics.mean(map(math.log, xs)))


def peers(args, bench):
    """Ours and the peers' milliseconds for every cell; geometric means of the speed-ups. The forwards are inferences;
    'both' is a forward that a backward follows, and that."""
    cells = []
    for dtype in ('f32', 'bf16'):
        for d in (64, 128):
            for mask in ('full', 'causal'):
                cells.append((f'sq2048_h8_d{d}' + (f'_{dtype}' if dtype != 'f32' else '') +
                              ('_causal' if mask == 'causal' else ''), d, dtype, mask))
    table = []
    for case, d, dtype, mask in cells:
        if not re.search(args.cells, case):
            continue
        ours = {'forward': [], 'backward': [], 'both': []}
        theirs = {}
        for _ in range(args.peer_processes):
            row = Row('', None, [case], 'forward', args.isas[0])
            ours['forward'].append(bench.pass_of(case, row, 1)['ms_median'])
            both = bench.passes(f'{case}_bwd', row, 1)
            ours['backward'].append(both['backward']['ms_median'])
            ours['both'].append(both['forward']['ms_median'] + both['backward']['ms_median'])
            bench.runs += both.values()
            for peer, python in (('jax', args.jax_python), ('torch', args.torch_python)):
                if not python:
                    continue
                cpu = str(min(os.sched_getaffinity(0)))
                done = subprocess.run([*bench.wrapper, 'taskset', '-c', cpu, python, os.path.join(HERE, 'peer.py'), peer,
                                       '2048', '8', str(d), dtype, mask], capture_output=True, text=True)
                if done.returncode:
                    theirs.setdefault(peer, {})['error'] = done.stderr.strip().splitlines()[-1:] or ['failed']
                    continue
                times = json.loads(done.stdout.splitlines()[-1])
                for p, ms in (times | {'both': times['forward'] + times['backward']}).items():
                    theirs.setdefault(peer, {}).setdefault(p, []).append(ms)
        for peer, got in theirs.items():
            if 'error' in got:
                print(f'{peer:6} {case:34} {got["error"][0]}')
                continue
            for p in ours:
                a, b = statistics.median(ours[p]), statistics.median(got[p])
                table.append(dict(peer=peer, case=case, dtype=dtype, mask=mask, **{'pass': p}, ours_ms=a, peer_ms=b,
                                  speedup=b / a))
                print(f'{peer:6} {case:34} {p:9} {a:9.2f} ms {b:9.2f} ms  {b / a:6.2f} x', flush=True)
    for peer in ('jax', 'torch'):
        ups = {}
        for c in table:
            if c['peer'] == peer:
                ups.setdefault((c['dtype'], c['pass']), []).append(c['speedup'])
        for (dtype, p), x in ups.items():
            print(f'{peer}, {dtype} {p}: geometric mean {geometric_mean(x):.2f} x, least {min(x):.2f} x')
        if not ups:
            print(f'{peer}: not measured; give --{peer}-python a Python that has it')
    return table


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tool', help='the program ringattn')
    p.add_argument('--processes', type=int, default=5)
    p.add_argument('--peer-processes', type=int, default=3)
    p.add_argument('--repeats', type=int, default=5, help='timed runs in each process')
    p.add_argument('--rows', default='', help='only rows whose name matches this regular expression')
    p.add_argument('--json', help='write every result here')
    p.add_argument('--svg', help='write the drawing here')
    p.add_argument('--wrapper', default='', help='run every measurement by this command')
    p.add_argument('--jax-python', help='a Python that has jax: compares with it')
    p.add_argument('--torch-python', help='a Python that has torch: compares with it')
    p.add_argument('--peers-only', action='store_true')
    p.add_argument('--cells', default='', help='only cells of the peers whose case matches this regular expression')
    a = p.parse_args()
    info = json.loads(subprocess.run([a.tool, 'info', '--json'], capture_output=True, text=True, check=True).stdout)
    a.isas = next(b['instruction_sets'] for b in info['backends'] if b['name'] == 'cpu')
    cores = len(os.sched_getaffinity(0))
    device = str(info['devices'][0])
    bench = Bench(a.tool, a.wrapper.split(), a.repeats)
    wanted = [] if a.peers_only else [r for r in rows() if re.search(a.rows, r.name)]
    figures = {r.name: [] for r in wanted}
    reasons = {r.name: why_not(r, a.isas, cores) for r in wanted}
    for _ in range(a.processes):  # rows take turns, so that a bad minute meets them all
        for r in wanted:
            if not reasons[r.name]:
                figures[r.name].append(bench.figure(r))
    table = []
    for r in wanted:
        got = figures[r.name]
        line = dict(row=r.name, bar=r.bar, unit=r.unit, isa=r.isa, cases=r.cases, least_is_best=r.ratio in ('time', 'overhead'),
                    roof=roof(r, bench.peaks, device), arithmetic=r.arithmetic)
        if got:
            line.update(figure=statistics.median(got), low=min(got), high=max(got), met=met(r, statistics.median(got)))
            verdict = 'no bar' if r.bar is None else f'bar {r.bar:4} {"met" if line["met"] else "missed"}'
            limit = f', roof {line["roof"]:.0f}' if line['roof'] else ''
            print(f'{r.name:40} {line["figure"]:7.1f} {r.unit:2} ({line["low"]:.1f} to {line["high"]:.1f})  {verdict}{limit}')
        else:
            line.update(reason=reasons[r.name])
            print(f'{r.name:40} not measured: {reasons[r.name]}')
        table.append(line)
    versus = peers(a, bench) if a.jax_python or a.torch_python else []
    if a.json:
        with open(a.json, 'w') as f:
            json.dump(dict(device=info['devices'][0], version=info['version'], processes=a.processes, table=table,
                           peers=versus, runs=bench.runs), f, indent=1)
    if a.svg:
        with open(a.svg, 'w') as f:
            f.write(draw(table))


if __name__ == '__main__':
    sys.exit(main())

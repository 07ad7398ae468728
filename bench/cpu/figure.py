# SPDX-License-Identifier: Apache-2.0
"""Draws the table of bars: each row's figure and spread as a part of the machine's limit, the bar it has to reach (blue)
and, where a count gives one, the most that it could reach (red, dashed)."""
from html import escape

WIDTH, LEFT, STEP, TOP = 760, 270, 20, 34


def as_share(t):
    """A time over the arithmetic's own as a share of the peak."""
    if t['unit'] != 'us':
        return t
    share = lambda over: 100 * t['arithmetic'] / (t['arithmetic'] + over)
    return dict(t, row=f'{t["row"]}, as a share', figure=share(t['figure']), low=share(t['high']), high=share(t['low']),
                bar=share(t['bar']))


def draw(table):
    """SVG of the rows, as shares of the multiply-add peak (the roof, 100 %) or of another rate."""
    lines = [as_share(t) for t in table if 'figure' in t]
    height = TOP + STEP * len(lines) + 30
    most = 200.0
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
           f'font-size="11">', f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
           '<text x="8" y="16" font-weight="bold">Share of the limit: the peak of the same run, or the other rate of '
           'the row. Blue: the bar; red: the limit, of ports or of cores</text>']

    def x(v):
        return LEFT + (WIDTH - LEFT - 60) * min(v, most) / most

    for tick in (0, 50, 100, 150, 200):
        roof = 2 if tick == 100 else 0.5
        out.append(f'<line x1="{x(tick):.1f}" y1="{TOP - 8}" x2="{x(tick):.1f}" y2="{height - 24}" stroke="#888" '
                   f'stroke-width="{roof}"/><text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick} %</text>')
    for i, t in enumerate(lines):
        y = TOP + STEP * i
        colour = '#888' if t['bar'] is None else '#2a7f3f' if t['met'] else '#b5482a'
        out.append(f'<text x="{LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(t["row"])}</text>'
                   f'<rect x="{LEFT}" y="{y + 2}" width="{x(t["figure"]) - LEFT:.1f}" height="11" fill="{colour}"/>'
                   f'<line x1="{x(t["low"]):.1f}" y1="{y + 7.5}" x2="{x(t["high"]):.1f}" y2="{y + 7.5}" stroke="black"/>'
                   + (f'<line x1="{x(t["bar"]):.1f}" y1="{y}" x2="{x(t["bar"]):.1f}" y2="{y + 15}" stroke="#1a3c8c" '
                      f'stroke-width="2.5"/>' if t['bar'] is not None else '')
                   + (f'<line x1="{x(t["roof"]):.1f}" y1="{y}" x2="{x(t["roof"]):.1f}" y2="{y + 15}" stroke="#c01818" '
                      f'stroke-width="1.5" stroke-dasharray="3 2"/>' if t.get('roof') else '') +
                   f'<text x="{WIDTH - 54}" y="{y + 11}">{t["figure"]:.0f} %</text>')
    return '\n'.join(out) + '\n</svg>\n'

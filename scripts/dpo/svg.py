"""Charts as inline SVG, written out by hand: no library draws them and nothing is loaded to show them.

Lengths are in the units of a chart's viewBox, which the page shows at about one CSS pixel each, on a phone too.
Colours and fonts come from the page's style sheet, so that a chart follows dark mode: run number n has the class
`series-n`, the base model `series-base`. Every text goes through `Markup.format`, which escapes it.
"""

import math

from markupsafe import Markup

COLOURS = 6  # series classes that the style sheet defines; a seventh run gets the first colour again
LONGEST_LINE = 58  # characters of a name and its figures that fit side by side above an interval


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return two or more numbers that enclose low to high, a round step (1, 2 or 5 times a power of ten) apart."""
    if high == low:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    # Rounded first: 0.6 / 0.2 is 2.9999999999999996, which would cost a tick too many.
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """Return tick values as text, all with the decimals that their step needs, and with a true minus sign."""
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def series_class(name: str, runs: list[str]) -> str:
    """Return the CSS class that colours a variant: by its place among the runs, or as the base model."""
    return f"series-{runs.index(name) % COLOURS}" if name in runs else "series-base"


def swatch(name: str, runs: list[str]) -> Markup:
    """Return a short piece of a variant's line, for a legend."""
    return Markup(
        '<svg class="swatch {}" viewBox="0 0 32 10" width="32" height="10" aria-hidden="true">'
        '<path class="line" d="M1 5H31"/><circle class="dot" cx="16" cy="5" r="3"/></svg>'
    ).format(series_class(name, runs))


def line_chart(
    series: dict[str, list[tuple[float, float]]],
    title: str,
    x_label: str,
    include: tuple[float, ...] = (),
    reference: tuple[float, str] | None = None,
) -> Markup:
    """Draw one line a series, with a dot and its figures on hover at every point.

    Args:
        series: name → points (x, y), ordered by x; colours follow the order of the names.
        title: what y is; read out with each series' first and last point.
        x_label: what x is, as a caption below the axis and in the hover texts.
        include: y values that the axis must cover beside the points.
        reference: y value and caption of a thin horizontal line.
    """
    width, height, left, right, top, bottom = 360, 230, 42, 348, 14, 190
    ys = [y for points in series.values() for _, y in points] + list(include) + ([reference[0]] if reference else [])
    x_ticks = round_ticks(0, max(x for points in series.values() for x, _ in points))
    y_ticks = round_ticks(min(ys), max(ys))

    def across(x: float) -> str:
        return f"{left + (right - left) * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]):.1f}"

    def up(y: float) -> str:
        return f"{bottom - (bottom - top) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]):.1f}"

    ends = "; ".join(
        f"{name}: {points[0][1]:.3f} at {x_label} {points[0][0]:g}, {points[-1][1]:.3f} at {points[-1][0]:g}"
        for name, points in series.items()
    )
    parts = [
        Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(
            width, height, f"{title} against {x_label}. {ends}."
        )
    ]
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(left, up(value), right))
        parts.append(Markup('<text x="{}" y="{}" dy="4" class="end">{}</text>').format(left - 6, up(value), label))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(Markup('<path class="grid" d="M{} {}v4"/>').format(across(value), bottom))
        parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format(across(value), bottom + 18, label))
    parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format((left + right) / 2, height - 4, x_label))
    if reference:
        parts.append(Markup('<path class="reference" d="M{} {}H{}"/>').format(left, up(reference[0]), right))
        parts.append(
            Markup('<text x="{}" y="{}" dy="-5" class="end note">{}</text>').format(
                right, up(reference[0]), reference[1]
            )
        )
    for name, points in series.items():
        radius = 3.2 if len(points) <= 40 else 1.6  # many points would run into one thick band
        line = "M" + "L".join(f"{across(x)} {up(y)}" for x, y in points)
        parts.append(Markup('<g class="{}"><path class="line" d="{}"/>').format(series_class(name, list(series)), line))
        for x, y in points:
            parts.append(
                Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                    across(x), up(y), radius, f"{name}, {x_label} {x:g}: {y:.4f}"
                )
            )
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def histogram(counts: dict, title: str, x_label: str, limits: tuple[float, float]) -> Markup:
    """Draw how often chosen and rejected answers have which length: chosen above the axis, rejected below it.

    Above and below, filled and outlined, so that nobody has to tell them apart by colour.

    Args:
        counts: `edges` of the bins, for each bin the number of `chosen` and of `rejected` answers, and `open_ended`
            where the last bin also holds everything beyond it.
        title: what is counted; read out with the range and the commonest length of either kind.
        x_label: unit of the lengths, which are whole numbers; a caption below the axis, and in the hover texts.
        limits: lengths that the axis must cover, so that two histograms can have the same one.
    """
    width, height, left, right, top, middle, bottom = 360, 262, 48, 348, 24, 112, 200
    edges = counts["edges"]
    # A bin is the whole numbers from its edge to below the next, and the last one has its end too. It is drawn half a
    # number wider on either side: then bins narrower than a number, some of which are empty, leave no gaps.
    ends = [math.ceil(edge) - 1 for edge in edges[1:-1]] + [math.floor(edges[-1])]
    bins = [
        (math.ceil(edge), end, chosen, rejected)
        for edge, end, chosen, rejected in zip(edges[:-1], ends, counts["chosen"], counts["rejected"], strict=True)
        if math.ceil(edge) <= end
    ]
    highest = max(*counts["chosen"], *counts["rejected"])
    # Never more ticks than there are whole numbers: half an answer, or half a token, would make no sense.
    x_ticks = round_ticks(limits[0] - 0.5, max(limits[1] + 0.5, limits[0] + 4.5))
    y_ticks = round_ticks(0, highest, min(3, highest))

    def across(x: float) -> float:
        return left + (right - left) * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def tall(count: int) -> float:
        return (middle - top) * count / y_ticks[-1]

    def named(first: int, last: int) -> str:
        if counts["open_ended"] and last == ends[-1]:
            return f"{first:,} {x_label} or more"
        return f"{first:,} to {last:,} {x_label}" if last > first else f"{first:,} {x_label}"

    spoken = []
    for kind, place in (("chosen", 2), ("rejected", 3)):
        filled = [row for row in bins if row[place]]
        commonest = max(filled, key=lambda row: row[place])
        spoken.append(
            f"{sum(counts[kind]):,} {kind} answers between {filled[0][0]:,} and {filled[-1][1]:,} {x_label}, "
            f"most often {named(*commonest[:2])} ({commonest[place]:,})"
        )
    parts = [
        Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(
            width, height, f"{title}. {'; '.join(spoken)}."
        )
    ]
    for kind, y in (("chosen", 12), ("rejected", bottom + 19)):
        parts.append(Markup('<path class="bar {}" d="M{} {}h12v-9h-12z"/>').format(kind, left, y))
        parts.append(Markup('<text x="{}" y="{}" class="heading">{}</text>').format(left + 18, y, kind.capitalize()))
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        for y in sorted({middle - tall(value), middle + tall(value)}):
            parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(left, y, right))
            parts.append(Markup('<text x="{}" y="{:.1f}" dy="4" class="end">{}</text>').format(left - 6, y, label))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(Markup('<path class="grid" d="M{:.1f} {}v4"/>').format(across(value), bottom))
        parts.append(
            Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(across(value), height - 24, label)
        )
    parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format((left + right) / 2, height - 5, x_label))
    for first, last, chosen, rejected in bins:
        start, end = across(first - 0.5), across(last + 0.5)
        hover = f"{named(first, last)}: {chosen:,} chosen, {rejected:,} rejected"
        parts.append(Markup("<g><title>{}</title>").format(hover))
        parts.append(
            Markup('<path class="hit" d="M{:.1f} {}H{:.1f}V{}H{:.1f}z"/>').format(start, top, end, bottom, start)
        )
        gap = 0.08 * (end - start)
        for kind, count, towards in (("chosen", chosen, -1), ("rejected", rejected, 1)):
            if count:
                parts.append(
                    Markup('<path class="bar {}" d="M{:.1f} {}v{:.1f}H{:.1f}V{}z"/>').format(
                        kind, start + gap, middle, towards * tall(count), end - gap, middle
                    )
                )
        parts.append(Markup("</g>"))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(left, middle, right))
    return Markup("").join([*parts, Markup("</svg>")])


def interval_plot(sections: list[dict], title: str) -> Markup:
    """Draw estimates with their intervals: a dot and whiskers a row, its name and figures above it.

    Names stand above the whiskers, not beside them, so that long ones leave the plot its width on a phone.

    Args:
        sections: each with an axis of its own, below it:
            `groups`: heading ("" for none) → rows `{"name", "series", "figures", "interval"}`: a name, the class that
                colours it, the figures in words, and the interval (`value`, `low`, `high`), or None where there is
                none to draw. `ring` is a second interval, drawn below it with a ring; `left_out` makes a row grey and
                dashed.
            `limits`: ends of the axis.
            `reference`: value and caption of a thin vertical line.
            `ends`: what the left and the right end of the axis mean, or two empty texts.
            `unit`: caption below the axis.
        title: what is estimated; read out with every figure.
    """
    width, left, right = 400, 12, 388
    parts, spoken, y = [], [], 0
    for section in sections:
        ticks = round_ticks(*section["limits"])
        top = y = y + 24
        marks = []

        def across(value: float, ticks: list[float] = ticks) -> str:
            return f"{left + (right - left) * (value - ticks[0]) / (ticks[-1] - ticks[0]):.1f}"

        for heading, rows in section["groups"].items():
            if heading:
                y += 26
                marks.append(Markup('<text x="0" y="{}" class="heading">{}</text>').format(y, heading))
            for row in rows:
                name, figures = row["name"], row["figures"]
                longest = LONGEST_LINE - len(figures)
                shown = name if len(name) <= longest else name[: longest - 1] + "…"
                spoken.append(": ".join([*([heading] if heading else []), name, figures]))
                y += 42
                classes = row["series"] + " left-out" * row.get("left_out", False)
                marks.append(Markup('<g class="{}"><title>{}</title>').format(classes, spoken[-1]))
                marks.append(Markup('<text x="0" y="{}">{}</text>').format(y - 13, shown))
                marks.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(width, y - 13, figures))
                y -= 13
                for interval, dot in ((row["interval"], "dot"), (row.get("ring"), "dot hollow")):
                    if interval:
                        y += 13
                        low, middle, high = (across(interval[key]) for key in ("low", "value", "high"))
                        whisker = Markup('<path class="whisker" d="M{} {}v10m0 -5H{}m0 -5v10"/>')
                        marks.append(whisker.format(low, y - 5, high))
                        marks.append(Markup('<circle class="{}" cx="{}" cy="{}" r="4.5"/>').format(dot, middle, y))
                marks.append(Markup("</g>"))
        y += 12
        for value, label in zip(ticks, tick_labels(ticks), strict=True):
            parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(across(value), top, y))
            parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format(across(value), y + 16, label))
        value, label = section["reference"]
        parts.append(Markup('<path class="reference" d="M{} {}V{}"/>').format(across(value), top - 6, y))
        parts.append(Markup('<text x="{}" y="{}" class="middle note">{}</text>').format(across(value), top - 11, label))
        for x, style, text in zip((0, width), ("note", "end note"), section["ends"], strict=True):
            if text:
                parts.append(Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, top - 11, style, text))
        y += 34
        parts.append(Markup('<text x="{}" y="{}" class="middle note">{}</text>').format(width / 2, y, section["unit"]))
        parts += marks
        y += 14
    opening = Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(
        width, y - 8, f"{title}. {'; '.join(spoken)}."
    )
    return Markup("").join([opening, *parts, Markup("</svg>")])


def reliability_plot(sets: dict[str, list[dict]], series: str, title: str) -> Markup:
    """Draw how often a model is right against how sure it is: on the diagonal its confidence can be taken at its word.

    Args:
        sets: name of a set of pairs → its bins (`confidence`, `accuracy`, `n`); the first has dots, the second rings.
        series: class that colours the model.
        title: what is drawn; read out with every bin.
    """
    width, height, left, right, top, bottom = 300, 270, 42, 290, 32, 220
    spoken, marks = [], []

    def place(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + (right - left) * (confidence - 0.5) / 0.5, bottom - (bottom - top) * accuracy

    for number, (name, bins) in enumerate(sets.items()):
        points = [place(part["confidence"], part["accuracy"]) for part in bins]
        line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        marks.append(Markup('<path class="{}" d="{}"/>').format("line dashed" if number else "line", line))
        for (x, y), part in zip(points, bins, strict=True):
            spoken.append(
                f"{name}, {part['n']} pairs: confidence {part['confidence']:.2f}, right {part['accuracy']:.2f}"
            )
            marks.append(
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>').format(
                    "dot hollow" if number else "dot", x, y, spoken[-1]
                )
            )
    parts = [
        Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(
            width, height, f"{title}. {'; '.join(spoken)}."
        )
    ]
    for tick in (0, 0.5, 1):
        y = place(0.5, tick)[1]
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(left, y, right))
        parts.append(Markup('<text x="{}" y="{:.1f}" dy="4" class="end">{:.1f}</text>').format(left - 6, y, tick))
    for tick in (0.5, 0.75, 1):
        x = place(tick, 0)[0]
        parts.append(Markup('<path class="grid" d="M{:.1f} {}v4"/>').format(x, bottom))
        parts.append(Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(x, bottom + 18, f"{tick:g}"))
    (x, y), (end_x, end_y) = place(0.5, 0.5), place(1, 1)
    parts.append(Markup('<path class="reference" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x, y, end_x, end_y))
    parts.append(Markup('<text x="{}" y="{}" class="middle">confidence</text>').format((left + right) / 2, height - 8))
    parts.append(Markup('<text x="0" y="12">share right</text>'))
    parts.append(Markup('<g class="{}">').format(series))
    return Markup("").join([*parts, *marks, Markup("</g></svg>")])


def interval_mark(interval: dict, limit: float) -> Markup:
    """Draw one interval (`value`, `low`, `high`) on an axis from -limit to +limit, zero marked; for a table's cell.

    It is hidden from screen readers, since the figures stand beside it.
    """
    width, middle = 120, 60

    def across(value: float) -> str:
        return f"{middle + (middle - 5) * value / limit:.1f}"

    low, value, high = (across(interval[key]) for key in ("low", "value", "high"))
    return Markup(
        '<svg class="mark" viewBox="0 0 {0} 14" width="{0}" height="14" aria-hidden="true">'
        '<path class="grid" d="M0 7H{0}"/><path class="reference" d="M{1} 0V14"/>'
        '<path class="whisker" d="M{2} 3v8m0 -4H{4}m0 -4v8"/><circle class="dot" cx="{3}" cy="7" r="3.2"/></svg>'
    ).format(width, middle, low, value, high)

"""Charts of a sweep as inline SVG, in the style of `svg.py`: measures against swept settings, and margin against KL."""

from markupsafe import Markup

from dpo.svg import round_ticks, series_class, tick_labels

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 48, 348, 14, 190


def spell(value) -> str:
    """Return a swept value as people write it."""
    return " + ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if is_number(value) else str(value)


def is_number(value) -> bool:
    """Tell whether a setting is a number; YAML's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def values_of(groups: list[dict], key: str) -> list:
    """Return the values of a swept setting: numbers by size, others in the order of the groups."""
    found = []
    for group in groups:
        if group["settings"][key] not in found:
            found.append(group["settings"][key])
    return sorted(found) if all(map(is_number, found)) else found


def series_of(groups: list[dict], key: str) -> dict[str, list[dict]]:
    """Return the groups that differ in one setting alone, by what the other settings are."""
    series: dict[str, list[dict]] = {}
    for group in groups:
        rest = ", ".join(f"{name} {spell(value)}" for name, value in group["settings"].items() if name != key)
        series.setdefault(rest, []).append(group)
    return series


def frame(title: str, spoken: list[str], y_ticks: list[float], up, x_label: str) -> list[Markup]:
    """Return the opening of a chart, its horizontal lines, and the caption of its x axis."""
    parts = [
        Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{title}. {'; '.join(spoken)}."
        )
    ]
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, up(value), RIGHT))
        parts.append(Markup('<text x="{}" y="{}" dy="4" class="end">{}</text>').format(LEFT - 6, up(value), label))
    caption = Markup('<text x="{}" y="{}" class="middle">{}</text>')
    parts.append(caption.format((LEFT + RIGHT) / 2, HEIGHT - 4, x_label))
    return parts


def scale(ticks: list[float], start: float, end: float):
    """Return a function from a value to its place between two ends, as text."""
    return lambda value: f"{start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0]):.1f}"


def measure_chart(groups: list[dict], key: str, measure: str, title: str) -> Markup:
    """Draw a measure against a swept setting: a dot and whiskers a group, a line through those that differ in it alone.

    The values stand evenly spaced in their order, as those of a sweep seldom lie on one scale.

    Args:
        groups: of `sweep.compare`.
        key: the setting.
        measure: name of the measure; groups without it are left out.
        title: what it is; read out with every figure.
    """
    values, series = values_of(groups, key), series_of([g for g in groups if measure in g["measures"]], key)
    shown = [group["measures"][measure] for found in series.values() for group in found]
    bounds = [one[end] for one in shown for end in ("value", "low", "high") if end in one]
    low, high = min(bounds), max(bounds)
    room = abs(low) / 10 if low == high else 0  # or a flat line would lie on the axis
    y_ticks = round_ticks(low - room, high + room)
    up = scale(y_ticks, BOTTOM, TOP)
    step = (RIGHT - LEFT) / len(values)
    spoken, marks = [], []
    for number, (name, found) in enumerate(series.items()):
        # Beside each other, so that whiskers at one value can be told apart.
        shift = (number - (len(series) - 1) / 2) * min(7, step / (len(series) + 1))
        points = []
        for group in sorted(found, key=lambda group: values.index(group["settings"][key])):
            one, place = group["measures"][measure], values.index(group["settings"][key])
            points.append((LEFT + step * (place + 0.5) + shift, one, spell(values[place])))
        marks.append(Markup('<g class="{}">').format(series_class(name, list(series))))
        line = "M" + "L".join(f"{x:.1f} {up(one['value'])}" for x, one, _ in points)
        marks.append(Markup('<path class="line" d="{}"/>').format(line))
        for x, one, value in points:
            figures = f"{key} {value}{f', {name}' if name else ''}: {one['value']:.4g}"
            if "low" in one:
                figures += f" ({one['low']:.4g} to {one['high']:.4g})"
                marks.append(
                    Markup('<path class="whisker" d="M{0:.1f} {2}h8m-4 0V{3}m-4 0h8"/>').format(
                        x - 4, x, up(one["low"]), up(one["high"])
                    )
                )
            spoken.append(figures)
            marks.append(
                Markup('<circle class="dot" cx="{:.1f}" cy="{}" r="3.6"><title>{}</title></circle>').format(
                    x, up(one["value"]), figures
                )
            )
        marks.append(Markup("</g>"))
    parts = frame(title, spoken, y_ticks, up, key)
    for place, value in enumerate(values):
        parts.append(
            Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(
                LEFT + step * (place + 0.5), BOTTOM + 18, spell(value)
            )
        )
    return Markup("").join([*parts, *marks, Markup("</svg>")])


def frontier_chart(groups: list[dict]) -> Markup:
    """Draw the held-out margin against the KL divergence from the base model, a dot a group.

    Filled dots and the line are the frontier: no other group has a larger margin for no larger a KL.
    """
    points = [(group["measures"]["kl"]["value"], group["measures"]["margin"]["value"], group) for group in groups]
    x_ticks = round_ticks(0, max(x for x, _, _ in points), 4)
    y_ticks = round_ticks(min(0, *(y for _, y, _ in points)), max(0, *(y for _, y, _ in points)))
    across, up = scale(x_ticks, LEFT, RIGHT), scale(y_ticks, BOTTOM, TOP)
    best = sorted((x, y) for x, y, group in points if group["on_frontier"])
    marks = [
        Markup('<g class="series-0"><path class="line dashed" d="{}"/>').format(
            "M" + "L".join(f"{across(x)} {up(y)}" for x, y in best)
        )
    ]
    spoken = []
    # From the right; names to the left and the right in turn, since neighbours are often close.
    for place, (x, y, group) in enumerate(sorted(points, key=lambda point: -point[0])):
        settings = ", ".join(f"{key} {spell(value)}" for key, value in group["settings"].items()) or "all runs"
        spoken.append(f"{settings}: KL {x:.2g}, margin {y:.3g}")
        dot = Markup('<circle class="{}" cx="{}" cy="{}" r="4.2"><title>{}</title></circle>')
        marks.append(dot.format("dot" if group["on_frontier"] else "dot hollow", across(x), up(y), spoken[-1]))
        if len(group["settings"]) == 1 and len(points) <= 12:
            style, shift = ("end", -8) if place % 2 == 0 or x > 0.9 * x_ticks[-1] else ("", 8)
            name = ", ".join(map(spell, group["settings"].values()))
            marks.append(
                Markup('<text x="{}" y="{}" dx="{}" dy="4" class="{}">{}</text>').format(
                    across(x), up(y), shift, style, name
                )
            )
    parts = frame("Held-out margin against KL from the base model", spoken, y_ticks, up, "KL, nats a token")
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(Markup('<path class="grid" d="M{} {}v4"/>').format(across(value), BOTTOM))
        parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format(across(value), BOTTOM + 18, label))
    return Markup("").join([*parts, *marks, Markup("</g></svg>")])

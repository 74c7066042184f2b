"""Several rows of a picture at once: approximate, for a first whole picture early.

A row begins when the row above is a few cells ahead; then every row gets one code a pass. Codes
keep their raster places, but a code does not see the end of the row above, which plain decoding
would have written before it. So the picture is another one; whoever shows it says so.

Source: ZipAR (He et al. 2024), whose rule this is; written anew.
"""

from collections.abc import Iterator, Sequence

import torch

from pure.engine import Engine
from pure.picture import Picture
from pure.sampling import SamplingConfig, draw, guide

LEAD = 8  # cells a row must be ahead of the one below; fewer is faster and further from plain


def rows(
    engine: Engine, pictures: Sequence[Picture], config: SamplingConfig, lead: int = LEAD
) -> Iterator[list[int]]:
    """Write pictures, one cell in each of several rows a pass; yields as `jacobi.parallel` does.

    Args:
        engine: that runs the model.
        pictures: to be completed.
        config: how codes are drawn.
        lead: cells a row stays behind the one above; of the columns and more it is plain order.
    """
    for picture in pictures:
        yield from _one(engine, picture, config, lead)


def _one(
    engine: Engine, picture: Picture, config: SamplingConfig, lead: int
) -> Iterator[list[int]]:
    columns, stride = picture.grid.columns, picture.grid.columns + 1
    read = [False] * len(picture.ids)  # ids the caches hold
    at = [0] * picture.grid.rows  # next cell of each row
    open_cells = set(picture.open)
    while not picture.done:
        span = []
        for row, column in enumerate(at):
            if row and at[row - 1] < min(columns, column + lead):
                break  # the rows below are further behind still
            while column < columns and 3 + row * stride + column not in open_cells:
                column += 1  # given: read with the next code
            at[row] = column
            if column < columns:
                span.append(3 + row * stride + column)
        if not span:
            continue
        last, _ = picture.cell(span[-1])
        decided = list(range(3))
        for row in range(last + 1):
            start = 3 + row * stride
            decided += range(start, start + at[row])
            if row < last:
                decided.append(start + columns)  # the newline, once the next row is written
        new = [index for index in decided if not read[index]]
        for index in new:
            read[index] = True
        places = torch.tensor(new, device=picture.ids.device)
        hidden = engine.hidden_at(*picture.rows_at(places))
        before = torch.tensor([new.index(index - 1) for index in span], device=places.device)
        states = [h[before - len(new)] for h in hidden]  # from the end: a text may stand first
        logits = engine.image_logits(torch.cat(states))
        if len(states) == 2:
            cond, uncond = logits.chunk(2)
            logits = guide(cond, uncond, config.guidance_scale)
        races = picture.races(span, logits.shape[-1])
        picture.put(span, draw(logits, config, races))
        picture.settle(span)
        for index in span:
            at[picture.cell(index)[0]] += 1
        yield [len(span)]

"""The kernels of the Gram form: loss and gradient from T T^T and S~ T^T, without E; with SECOND the Hessian times a
direction, from T vT^T and S~ vT^T as well. Formulas: csrc/README.md.

As in :mod:`l2t_fast.ops.triton.kernels` a program takes one item of a list. Maps are float32, bfloat16 or float16, all
between the kernels is float32. Sums that cancel are of three products of tf32 (X3), or, of two maps of 16 bits, of the
one in their own type, which is exact; dT's are of one of tf32, to which 16 bits are exact too.
"""

import triton
import triton.language as tl

from l2t_fast.ops.triton.kernels import (
    _bias,
    _coefficients,
    _lives,
    _only_if,
    _pointer,
    _pointers,
    _rounded,
    _tap,
    _tile,
)
from l2t_fast.ops.triton.records import (
    ALPHA,
    BIAS,
    CHANNELS,
    COLUMN,
    COLUMNS,
    CONSTANT,
    D_MAP,
    FACTOR,
    FACTOR_SUMS,
    FIRST_GROUP,
    FIRST_PAIR,
    FIRST_ROW,
    GROUP,
    GROUP_FIRST,
    GROUP_HEIGHT,
    GROUP_PAIRS,
    GROUP_WIDTH,
    GROUP_WORDS,
    GROUPS,
    GROWN,
    HEIGHT,
    LOSS_SUMS,
    MAP,
    MAP_SUMS,
    NEXT,
    OWN_PAIRS,
    PAIRS,
    PRODUCTS,
    ROWS,
    SHRUNK,
    SOURCE,
    SOURCE_CHANNELS,
    SOURCE_HEIGHT,
    SOURCE_SUMS,
    SOURCE_WIDTH,
    SQUARES,
    V_ALPHA,
    V_BIAS,
    V_FACTOR,
    V_MAP,
    V_MAP_SUMS,
    V_PRODUCTS,
    V_SHRUNK,
    V_WEIGHT,
    WEIGHT,
    WEIGHT_SUMS,
    WIDTH,
)

# words of an item: kind, target, pair or group (word 0 of it), sample, first row, pixel or channel, whether it is of a
# direction
GRAM_ITEM = tl.constexpr(6)
# words of an item of gram_projections_kernel: target, pair, first row, samples from and to, split, number for the loss
PROJECTIONS_ITEM = tl.constexpr(7)

# kinds of items
MAP_SUM, SOURCE_SUM, SHRINK, CONSTANTS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
OF_MAPS, OF_SMALL, OF_WEIGHTS, GROW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)

X3 = tl.constexpr("tf32x3")
# Tensor cores cut off what a float does not hold, always towards zero. So that this does not add up over thousands of
# pixels, of whose sums Q is a small difference, the sums of so many are added by additions that round.
CHAIN = tl.constexpr(128)


@triton.jit
def _pixels_of(view, TYPE: tl.constexpr, sample, pixel, lives, channel, channel_lives, VECTOR: tl.constexpr):
    """A tile of a sample of a map, (pixels, channels), in the map's type."""
    base = _pointer(view, TYPE) + sample * tl.load(view + 1)
    at_channel = channel * tl.load(view + 2).to(tl.int32)
    return _tile(base, pixel, at_channel, lives, channel_lives, 0, VECTOR)


@triton.jit
def _dense(base, row, lives, channel, channels, VECTOR: tl.constexpr):
    """A tile of a (rows, channels) matrix in the workspace."""
    return _tile(base, row * channels, channel, lives, channel < channels, 1, VECTOR)


@triton.jit
def _store_dense(base, row, lives, channel, channels, values, VECTOR: tl.constexpr):
    to = _pointers(base, row * channels, channel, 1, VECTOR)
    tl.store(to, values, mask=_lives(lives, channel < channels, 1, VECTOR))


@triton.jit
def _share(place, wanted, size_in, size_out):
    """What target pixels take of a source pixel, along one axis."""
    lower, upper, share = _tap(place, size_in, size_out)
    return tl.where(lower == wanted, 1 - share, 0.0) + tl.where(upper == wanted, share, 0.0)


@triton.jit
def _first_reached(place, size_in, size_out):
    """A target pixel up to which none takes of source pixel ``place``; nearly the last one."""
    return tl.maximum((2 * place - 1) * size_out // (2 * size_in) - 1, 0)


@triton.jit
def _last_reached(place, size_in, size_out):
    """A target pixel from which on none takes of source pixel ``place``; nearly the first one."""
    return tl.minimum((2 * place + 3) * size_out // (2 * size_in) + 2, size_out)


@triton.jit
def _sum_map(
    target,
    TYPE: tl.constexpr,
    moves,
    sample,
    channel,
    channels,
    pixels,
    VECTOR: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """The sums over the pixels of T, or of its direction."""
    view = target + tl.where(moves, V_MAP, MAP)
    sums = tl.zeros_like(channel).to(tl.float32)
    for start in range(0, pixels, TILE_COLUMNS):
        pixel = start + tl.arange(0, TILE_COLUMNS)
        t = _pixels_of(view, TYPE, sample, pixel, pixel < pixels, channel, channel < channels, VECTOR)
        sums += tl.sum(t.to(tl.float32), 0)
    to = _pointer(target + tl.where(moves, V_MAP_SUMS, MAP_SUMS), tl.float32) + sample * channels
    tl.store(to + channel, sums, mask=channel < channels)


@triton.jit
def _moments(place, size_in, size_out):
    """Of what target pixels take of source pixel ``place``, along one axis: the sums of it, of its square, and of its
    products with what they take of the pixel before and of the one after."""
    sums = tl.zeros_like(place).to(tl.float32)
    before, squares, after = sums, sums, sums
    first = _first_reached(place, size_in, size_out)
    for step in range(0, 2 * size_out // size_in + 4):
        at = first + step
        lower, upper, share = _tap(at, size_in, size_out)
        own = tl.where(at < size_out, _share(at, place, size_in, size_out), 0.0)
        sums += own
        before += tl.where(lower < place, own * (1 - share), 0.0)
        squares += own * own
        after += tl.where(upper > place, own * share, 0.0)
    return sums, before, squares, after


@triton.jit
def _sum_source(
    target, pair, TYPE: tl.constexpr, sample, row, pixels, VECTOR: tl.constexpr, TILE_COLUMNS: tl.constexpr
):
    """The sums over the target's pixels of S~ and of S~^2.

    Of a smaller source without S~: sum S~^2 = s^T (U^T U) s, where U^T U reaches to the next pixel along each axis.
    """
    view = pair + SOURCE
    lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    height, width = tl.load(pair + SOURCE_HEIGHT).to(tl.int32), tl.load(pair + SOURCE_WIDTH).to(tl.int32)
    to_height, to_width = tl.load(target + HEIGHT).to(tl.int32), tl.load(target + WIDTH).to(tl.int32)
    sums = tl.zeros_like(row).to(tl.float32)
    squares = tl.zeros_like(row).to(tl.float32)
    for start in range(0, height * width, TILE_COLUMNS):
        pixel = start + tl.arange(0, TILE_COLUMNS)
        inside = pixel < height * width
        if height * width == pixels:
            s = _pixels_of(view, TYPE, sample, pixel, inside, row, lives, VECTOR).to(tl.float32)
            sums += tl.sum(s, 0)
            squares += tl.sum(s * s, 0)
        else:
            y, x = pixel // width, pixel % width
            down, _, square, below = _moments(y, height, to_height)
            along, left, centre, right = _moments(x, width, to_width)
            s = _pixels_of(view, TYPE, sample, pixel, inside, row, lives, 1).to(tl.float32)
            sums += tl.sum((down * along)[:, None] * s, 0)
            # U^T U is symmetric: what rows share with the ones below counts twice
            inside_below = inside & (y + 1 < height)
            taken = tl.zeros_like(s)
            for step in tl.static_range(-1, 2):
                share = left if step < 0 else right if step > 0 else centre
                beside = (x + step >= 0) & (x + step < width)
                at = pixel + step
                same = _pixels_of(view, TYPE, sample, at, inside & beside, row, lives, 1).to(tl.float32)
                next_ = _pixels_of(view, TYPE, sample, at + width, inside_below & beside, row, lives, 1).to(tl.float32)
                taken += share[:, None] * (square[:, None] * same + (2 * below)[:, None] * next_)
            squares += tl.sum(s * taken, 0)
    at = 2 * (sample * tl.load(target + ROWS) + tl.load(pair + FIRST_ROW) + row)
    to = _pointer(target + SOURCE_SUMS, tl.float32) + at
    tl.store(to, sums, mask=lives)
    tl.store(to + 1, squares, mask=lives)


@triton.jit
def _shrink(
    target,
    group,
    TYPE: tl.constexpr,
    moves,
    sample,
    y,
    channel,
    channels,
    CHANNEL_VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """A row of T U (or of its direction): along columns first, then along the row, as a product with the shares."""
    view = target + tl.where(moves, V_MAP, MAP)
    height, width = tl.load(target + HEIGHT).to(tl.int32), tl.load(target + WIDTH).to(tl.int32)
    to_height, to_width = tl.load(group + GROUP_HEIGHT).to(tl.int32), tl.load(group + GROUP_WIDTH).to(tl.int32)
    channel_lives = channel < channels
    first_row, last_row = _first_reached(y, to_height, height), _last_reached(y, to_height, height)
    for start in range(0, to_width, STEP):
        x = start + tl.arange(0, STEP)
        sums = tl.zeros((STEP, channel.shape[0]), tl.float32)
        end = _last_reached(start + STEP - 1, to_width, width)
        for begin in range(_first_reached(start, to_width, width), end, STEP):
            column = begin + tl.arange(0, STEP)
            line = tl.zeros((STEP, channel.shape[0]), tl.float32)
            for row in range(first_row, last_row):
                t = _pixels_of(view, TYPE, sample, row * width + column, column < width, channel, channel_lives, 1)
                line += _share(row, y, to_height, height) * t.to(tl.float32)
            shares = _share(column[None, :], x[:, None], to_width, width)
            sums = tl.dot(shares, line, sums, input_precision=X3)
        to = _pointer(group + tl.where(moves, V_SHRUNK, SHRUNK), tl.float32)
        to += (sample * to_height + y) * to_width * channels
        _store_dense(to, x, x < to_width, channel, channels, sums, CHANNEL_VECTOR)


@triton.jit
def _weights(view, TYPE: tl.constexpr, row, channel, lives):
    """A tile of a projection's weight (or of its direction), (rows, channels), float32; zeros where it has no tensor.

    gram_planning.can_serve sees to it that offsets fit into 32 bits.
    """
    address, by_row, by_channel = tl.load(view), tl.load(view + 1).to(tl.int32), tl.load(view + 2).to(tl.int32)
    at = row[:, None] * by_row + channel[None, :] * by_channel
    pointers = address.to(tl.pointer_type(TYPE)) + at
    return tl.load(pointers, mask=_only_if(address != 0, lives), other=0.0).to(tl.float32)


@triton.jit
def _scaled_weight(table, pair, W_TYPE: tl.constexpr, sample, row, channel, channels, MOVES: tl.constexpr):
    """2 alpha W, (rows, channels); with MOVES its direction, 2 alpha vW + 2 valpha W."""
    lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    both = lives[:, None] & (channel < channels)[None, :]
    column = tl.load(pair + COLUMN)
    twice = 2 * _coefficients(table + ALPHA, sample, column, row, lives, tl.int64)
    w = _weights(pair + WEIGHT, W_TYPE, row, channel, both)
    if MOVES:
        moved = _weights(pair + V_WEIGHT, W_TYPE, row, channel, both)
        twice_moved = 2 * _coefficients(table + V_ALPHA, sample, column, row, lives, tl.int64)
        scaled = twice[:, None] * moved + twice_moved[:, None] * w
    else:
        scaled = twice[:, None] * w
    return scaled


@triton.jit
def _constants(
    table,
    target,
    sample,
    channel,
    channels,
    SECOND: tl.constexpr,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    STEP: tl.constexpr,
):
    """W^T 2 alpha b; with SECOND its direction."""
    sums = tl.zeros_like(channel).to(tl.float32)
    pair = tl.load(target + FIRST_PAIR)
    for _ in range(0, tl.load(target + PAIRS).to(tl.int32)):
        rows = tl.load(table + pair + SOURCE_CHANNELS).to(tl.int32)
        for start in range(0, rows, STEP):
            row = start + tl.arange(0, STEP)
            bias = _bias(table + pair + BIAS, B_TYPE, row, row < rows, tl.int64)
            scaled = _scaled_weight(table, table + pair, W_TYPE, sample, row, channel, channels, SECOND)
            sums += tl.sum(scaled * bias[:, None], 0)
            if SECOND:
                bias = _bias(table + pair + V_BIAS, B_TYPE, row, row < rows, tl.int64)
                scaled = _scaled_weight(table, table + pair, W_TYPE, sample, row, channel, channels, False)
                sums += tl.sum(scaled * bias[:, None], 0)
        pair = tl.load(table + pair + NEXT)
    tl.store(_pointer(target + CONSTANT, tl.float32) + sample * channels + channel, sums, mask=channel < channels)


@triton.jit
def gram_planes_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, GRAM_ITEM)
    SECOND: tl.constexpr,
    MAP_TYPE: tl.constexpr,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    VECTOR: tl.constexpr,  # of T and vT: see kernels._tile
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,  # all of them
    CHANNEL_VECTOR: tl.constexpr,  # which they are a multiple of
    STEP: tl.constexpr,
):
    """Sums over pixels; T U; W^T 2 alpha b; with SECOND also of vT, and the direction of the last."""
    item = items + tl.program_id(0) * GRAM_ITEM
    kind, target, other = tl.load(item), table + tl.load(item + 1), table + tl.load(item + 2)
    sample, first, moves = tl.load(item + 3).to(tl.int64), tl.load(item + 4), tl.load(item + 5) != 0
    channels = tl.load(target + CHANNELS).to(tl.int32)
    pixels = (tl.load(target + HEIGHT) * tl.load(target + WIDTH)).to(tl.int32)
    channel = tl.arange(0, TILE_CHANNELS)
    if kind == MAP_SUM:
        _sum_map(target, MAP_TYPE, moves, sample, channel, channels, pixels, VECTOR, TILE_COLUMNS)
    elif kind == SOURCE_SUM:
        _sum_source(target, other, MAP_TYPE, sample, first + tl.arange(0, TILE_ROWS), pixels, VECTOR, TILE_COLUMNS)
    elif kind == SHRINK:
        _shrink(target, other, MAP_TYPE, moves, sample, first, channel, channels, CHANNEL_VECTOR, STEP)
    else:
        _constants(table, target, sample, channel, channels, SECOND, W_TYPE, B_TYPE, STEP)


@triton.jit
def _store_product(target, moves, sample, row, lives, channel, channels, sums):
    lines = channels + tl.load(target + ROWS)
    to = _pointer(target + tl.where(moves, V_PRODUCTS, PRODUCTS), tl.float32) + sample * lines * channels
    _store_dense(to, row, lives, channel, channels, sums, 1)


@triton.jit
def _multiply_maps(
    table,
    target_at,
    pair_at,
    TYPE: tl.constexpr,
    moves,
    sample,
    row,
    channel,
    channels,
    sums,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """S T^T of a pair with a source of the target's size; without a pair T T^T. Where it ``moves``, times vT^T."""
    target = table + target_at
    right = target + tl.where(moves, V_MAP, MAP)
    view = table + tl.where(pair_at != 0, pair_at + SOURCE, target_at + MAP)
    rows = tl.where(pair_at != 0, tl.load(table + pair_at + SOURCE_CHANNELS).to(tl.int32), channels)
    pixels = (tl.load(target + HEIGHT) * tl.load(target + WIDTH)).to(tl.int32)
    for begin in range(0, pixels, CHAIN):
        part = tl.zeros_like(sums)
        for start in range(begin, tl.minimum(begin + CHAIN, pixels), STEP):
            pixel = start + tl.arange(0, STEP)
            s = _pixels_of(view, TYPE, sample, pixel, pixel < pixels, row, row < rows, VECTOR)
            t = _pixels_of(right, TYPE, sample, pixel, pixel < pixels, channel, channel < channels, VECTOR)
            part = tl.dot(tl.trans(s), t, part, input_precision=X3)  # which is for float32 alone
        sums += part
    to_row = tl.where(pair_at != 0, channels + tl.load(table + pair_at + FIRST_ROW).to(tl.int32), 0) + row
    _store_product(target, moves, sample, to_row, row < rows, channel, channels, sums)


@triton.jit
def _multiply_small(
    table, target, pair, TYPE: tl.constexpr, moves, sample, row, channel, channels, sums, STEP: tl.constexpr
):
    """S (T U)^T, which is S~ T^T, of a pair with a smaller source. Where it ``moves``, times vT's."""
    rows = tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    pixels = (tl.load(pair + SOURCE_HEIGHT) * tl.load(pair + SOURCE_WIDTH)).to(tl.int32)
    group = table + tl.load(pair + GROUP)
    shrunk = _pointer(group + tl.where(moves, V_SHRUNK, SHRUNK), tl.float32) + sample * pixels * channels
    for begin in range(0, pixels, CHAIN):
        part = tl.zeros_like(sums)
        for start in range(begin, tl.minimum(begin + CHAIN, pixels), STEP):
            pixel = start + tl.arange(0, STEP)
            s = _pixels_of(pair + SOURCE, TYPE, sample, pixel, pixel < pixels, row, row < rows, 1)
            t = _dense(shrunk, pixel, pixel < pixels, channel, channels, 1)
            part = tl.dot(tl.trans(s.to(tl.float32)), t, part, input_precision=X3)
        sums += part
    to_row = channels + tl.load(pair + FIRST_ROW).to(tl.int32) + row
    _store_product(target, moves, sample, to_row, row < rows, channel, channels, sums)


@triton.jit
def _multiply_weights(
    table, target, sample, some, channel, channels, sums, MOVES: tl.constexpr, W_TYPE: tl.constexpr, STEP: tl.constexpr
):
    """W^T 2 alpha W, of some of the channels by all; with MOVES its direction."""
    pair = tl.load(target + FIRST_PAIR)
    for _ in range(0, tl.load(target + PAIRS).to(tl.int32)):
        rows = tl.load(table + pair + SOURCE_CHANNELS).to(tl.int32)
        for start in range(0, rows, STEP):
            k = start + tl.arange(0, STEP)
            lives = (k < rows)[:, None] & (channel < channels)[None, :]
            w = _weights(table + pair + WEIGHT, W_TYPE, k, channel, lives)
            scaled = _scaled_weight(table, table + pair, W_TYPE, sample, k, some, channels, MOVES)
            sums = tl.dot(tl.trans(scaled), w, sums, input_precision=X3)
        if MOVES:
            for start in range(0, tl.where(tl.load(table + pair + V_WEIGHT) != 0, rows, 0), STEP):
                k = start + tl.arange(0, STEP)
                lives = (k < rows)[:, None] & (channel < channels)[None, :]
                w = _weights(table + pair + V_WEIGHT, W_TYPE, k, channel, lives)
                scaled = _scaled_weight(table, table + pair, W_TYPE, sample, k, some, channels, False)
                sums = tl.dot(tl.trans(scaled), w, sums, input_precision=X3)
        pair = tl.load(table + pair + NEXT)
    to = _pointer(target + (V_FACTOR if MOVES else FACTOR), tl.float32) + sample * channels * channels
    _store_dense(to, some, some < channels, channel, channels, sums, 1)


@triton.jit
def _grow(
    table,
    group,
    sample,
    pixel,
    channel,
    channels,
    sums,
    SECOND: tl.constexpr,
    MAP_TYPE: tl.constexpr,
    W_TYPE: tl.constexpr,
    STEP: tl.constexpr,
):
    """W^T 2 alpha S of the pairs of a group, at the source's size; with SECOND its direction."""
    pixels = (tl.load(group + GROUP_HEIGHT) * tl.load(group + GROUP_WIDTH)).to(tl.int32)
    pair = tl.load(group + GROUP_FIRST)
    for _ in range(0, tl.load(group + GROUP_PAIRS).to(tl.int32)):
        rows = tl.load(table + pair + SOURCE_CHANNELS).to(tl.int32)
        for start in range(0, rows, STEP):
            k = start + tl.arange(0, STEP)
            s = _pixels_of(table + pair + SOURCE, MAP_TYPE, sample, pixel, pixel < pixels, k, k < rows, 1)
            scaled = _scaled_weight(table, table + pair, W_TYPE, sample, k, channel, channels, SECOND)
            sums = tl.dot(s.to(tl.float32), scaled, sums, input_precision=X3)
        pair = tl.load(table + pair + NEXT)
    to = _pointer(group + GROWN, tl.float32) + sample * pixels * channels
    _store_dense(to, pixel, pixel < pixels, channel, channels, sums, 1)


@triton.jit
def gram_products_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, GRAM_ITEM)
    SECOND: tl.constexpr,
    MAP_TYPE: tl.constexpr,
    W_TYPE: tl.constexpr,
    VECTOR: tl.constexpr,  # of T, vT and sources of their size
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,  # all of them
    STEP: tl.constexpr,
):
    """T T^T and S~ T^T of a sample; W^T 2 alpha W; W^T 2 alpha S: a tile of rows, or of pixels, and all channels.

    What these leave is written in single elements: vectors would make the products spill registers.
    With SECOND also T vT^T, S~ vT^T and the direction of W^T 2 alpha W; and of W^T 2 alpha S the direction alone.
    """
    item = items + tl.program_id(0) * GRAM_ITEM
    kind, target_at, place = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    sample, first, moves = tl.load(item + 3).to(tl.int64), tl.load(item + 4), tl.load(item + 5) != 0
    target = table + target_at
    channels = tl.load(target + CHANNELS).to(tl.int32)
    channel = tl.arange(0, TILE_CHANNELS)
    row = first + tl.arange(0, TILE_ROWS)
    sums = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    if kind == OF_MAPS:
        _multiply_maps(table, target_at, place, MAP_TYPE, moves, sample, row, channel, channels, sums, VECTOR, STEP)
    elif kind == OF_SMALL:
        _multiply_small(table, target, table + place, MAP_TYPE, moves, sample, row, channel, channels, sums, STEP)
    elif kind == OF_WEIGHTS:
        if SECOND:
            if moves:
                _multiply_weights(table, target, sample, row, channel, channels, sums, True, W_TYPE, STEP)
            else:
                _multiply_weights(table, target, sample, row, channel, channels, sums, False, W_TYPE, STEP)
        else:
            _multiply_weights(table, target, sample, row, channel, channels, sums, False, W_TYPE, STEP)
    else:
        _grow(table, table + place, sample, row, channel, channels, sums, SECOND, MAP_TYPE, W_TYPE, STEP)


@triton.jit
def _mean(target, WHERE: tl.constexpr, sample, channel, channels):
    """The sums over pixels of T, or of its direction, (channels,); zeros where it has none."""
    address = tl.load(target + WHERE)
    sums = address.to(tl.pointer_type(tl.float32)) + sample * channels
    return tl.load(sums + channel, mask=_only_if(address != 0, channel < channels), other=0.0)


@triton.jit
def _product_at(target, WHERE: tl.constexpr, sample, channels):
    """T T^T and S~ T^T of a sample (or T vT^T and S~ vT^T), and whether there are any."""
    address, lines = tl.load(target + WHERE), channels + tl.load(target + ROWS)
    return address.to(tl.pointer_type(tl.float32)) + sample * lines * channels, address != 0


@triton.jit
def gram_projections_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, PROJECTIONS_ITEM)
    SECOND: tl.constexpr,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,  # all of them
    CHANNEL_VECTOR: tl.constexpr,  # which they are a multiple of
    STEP: tl.constexpr,
):
    """dW, the sums of E, Q and the loss of a pair's rows, for some samples one after the other.

    With M = W T T^T + b (sum T)^T - S~ T^T: sum D = W sum T + P b - sum S~,
    Q = W . (M - S~ T^T) + b (sum D - sum S~) + sum S~^2.

    With SECOND hW, the sums of E' and 2 sum D V. With K = T vT^T, N = W (K + K^T) + vW T T^T and
    C = b (sum vT)^T - S~ vT^T: hW = 2 alpha (N + C + vb (sum T)^T) + 2 valpha M, sum V = W sum vT + vW sum T + P vb,
    sum D V = W . (N / 2 + C) + vW . (M - W T T^T / 2) + vb sum D.
    """
    item = items + tl.program_id(0) * PROJECTIONS_ITEM
    target, pair = table + tl.load(item), table + tl.load(item + 1)
    row = tl.load(item + 2) + tl.arange(0, TILE_ROWS)
    begin, end = tl.load(item + 3), tl.load(item + 4)
    channels = tl.load(target + CHANNELS).to(tl.int32)
    channel = tl.arange(0, TILE_CHANNELS)
    lives, channel_lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32), channel < channels
    both = lives[:, None] & channel_lives[None, :]
    rows, first_row = tl.load(target + ROWS), tl.load(pair + FIRST_ROW)
    pixels = (tl.load(target + HEIGHT) * tl.load(target + WIDTH)).to(tl.float32)
    bias = _bias(pair + BIAS, B_TYPE, row, lives, tl.int64)
    bias_moved = _bias(pair + V_BIAS, B_TYPE, row, lives, tl.int64)
    gradient = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    factor = tl.zeros_like(row).to(tl.float32)
    loss = tl.zeros_like(row).to(tl.float32)
    for each in range(0, end - begin):
        sample = begin.to(tl.int64) + each
        product, _ = _product_at(target, PRODUCTS, sample, channels)
        product_moved, maps_move = _product_at(target, V_PRODUCTS, sample, channels)
        found = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
        moved = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
        for start in range(0, channels, STEP):
            k = start + tl.arange(0, STEP)
            some = _weights(pair + WEIGHT, W_TYPE, row, k, lives[:, None] & (k < channels)[None, :])
            t = _dense(product, k, k < channels, channel, channels, CHANNEL_VECTOR)
            found = tl.dot(some, t, found, input_precision=X3)
        if SECOND:
            for start in range(0, tl.where(tl.load(pair + V_WEIGHT) != 0, channels, 0), STEP):
                k = start + tl.arange(0, STEP)
                some = _weights(pair + V_WEIGHT, W_TYPE, row, k, lives[:, None] & (k < channels)[None, :])
                t = _dense(product, k, k < channels, channel, channels, CHANNEL_VECTOR)
                moved = tl.dot(some, t, moved, input_precision=X3)
            for start in range(0, tl.where(maps_move, channels, 0), STEP):
                k = start + tl.arange(0, STEP)
                some = _weights(pair + WEIGHT, W_TYPE, row, k, lives[:, None] & (k < channels)[None, :])
                t = _dense(product_moved, k, k < channels, channel, channels, CHANNEL_VECTOR)
                turned = product_moved + (channel[None, :] * channels + k[:, None])
                t += tl.load(turned, mask=(k < channels)[:, None] & channel_lives[None, :], other=0.0)
                moved = tl.dot(some, t, moved, input_precision=X3)
        w = _weights(pair + WEIGHT, W_TYPE, row, channel, both)  # again: it is not to fill registers in between
        mean = _mean(target, MAP_SUMS, sample, channel, channels)[None, :]
        cross = _dense(product + (channels + first_row) * channels, row, lives, channel, channels, CHANNEL_VECTOR)
        sources = _pointer(target + SOURCE_SUMS, tl.float32) + 2 * (sample * rows + first_row + row)
        source = tl.load(sources, mask=lives, other=0.0)
        difference = tl.sum(w * mean, 1) + pixels * bias - source
        column = tl.load(pair + COLUMN)
        twice = 2 * _coefficients(table + ALPHA, sample, column, row, lives, tl.int64)
        if SECOND:
            w_moved = _weights(pair + V_WEIGHT, W_TYPE, row, channel, both)
            whole = found + (bias[:, None] * mean - cross)
            square = tl.sum(w_moved * (whole - found / 2), 1) + bias_moved * difference
            twice_moved = 2 * _coefficients(table + V_ALPHA, sample, column, row, lives, tl.int64)
            gradient += twice_moved[:, None] * whole
            cross = _dense(
                product_moved + (channels + first_row) * channels,
                row,
                _only_if(maps_move, lives),
                channel,
                channels,
                CHANNEL_VECTOR,
            )
            mean_moved = _mean(target, V_MAP_SUMS, sample, channel, channels)[None, :]
            change = bias[:, None] * mean_moved - cross
            square = 2 * (square + tl.sum(w * (moved / 2 + change), 1))
            gradient += twice[:, None] * (moved + (change + bias_moved[:, None] * mean))
            changed = tl.sum(w * mean_moved + w_moved * mean, 1) + pixels * bias_moved
            factor += twice * changed + twice_moved * difference
        else:
            found += bias[:, None] * mean - cross
            square = tl.sum(w * (found - cross), 1) + bias * (difference - source)
            square += tl.load(sources + 1, mask=lives, other=0.0)
            square = tl.where(square < 0, 0.0, square)  # what rounding leaves of a sum of squares
            loss += twice / 2 * square
            factor += twice * difference
            gradient += twice[:, None] * found
        address = tl.load(table + SQUARES)
        to = address.to(tl.pointer_type(tl.float32)) + sample * tl.load(table + COLUMNS) + column
        tl.store(to + row, square, mask=_only_if(address != 0, lives))
    split = tl.load(item + 5).to(tl.int64)
    if not SECOND:
        tl.store(_pointer(table + LOSS_SUMS, tl.float32) + tl.load(item + 6), tl.sum(loss, 0))
    tl.store(_pointer(target + FACTOR_SUMS, tl.float32) + (split * rows + first_row + row), factor, mask=lives)
    address = tl.load(target + WEIGHT_SUMS)
    to = address.to(tl.pointer_type(tl.float32)) + (split * rows + first_row) * channels
    _store_dense(to, row, _only_if(address != 0, lives), channel, channels, gradient, CHANNEL_VECTOR)


@triton.jit
def _apply(
    target,
    VIEW: tl.constexpr,
    FACTOR_OF: tl.constexpr,
    TYPE: tl.constexpr,
    sample,
    pixel,
    lives,
    channel,
    channels,
    sums,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNEL_VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """A factor times a map; nothing where there is no factor."""
    factor = _pointer(target + FACTOR_OF, tl.float32) + sample * channels * channels
    for start in range(0, tl.where(tl.load(target + FACTOR_OF) != 0, channels, 0), STEP):
        k = start + tl.arange(0, STEP)
        t = _pixels_of(target + VIEW, TYPE, sample, pixel, lives, k, k < channels, VECTOR)
        a = _dense(factor, k, k < channels, channel, channels, CHANNEL_VECTOR)
        t, a = _rounded(t, tl.float32, ROUND), _rounded(a, tl.float32, ROUND)
        sums = tl.dot(t, a, sums, input_precision=PRECISION)
    return sums


@triton.jit
def gram_targets_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, GRAM_ITEM)
    SECOND: tl.constexpr,
    MAP_TYPE: tl.constexpr,
    D_TYPE: tl.constexpr,  # of dT
    W_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    VECTOR: tl.constexpr,  # of T, vT and sources of their size
    D_VECTOR: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,  # all of them
    CHANNEL_VECTOR: tl.constexpr,  # which they are a multiple of
    STEP: tl.constexpr,
):
    """dT = (W^T 2 alpha W) T - W^T 2 alpha S~ + W^T 2 alpha b, a tile of a sample's pixels and all channels.

    With SECOND its direction: (W^T 2 alpha W) vT, and the same sum as in dT of the directions of the factors.
    """
    item = items + tl.program_id(0) * GRAM_ITEM
    target, sample = table + tl.load(item + 1), tl.load(item + 3).to(tl.int64)
    pixel = tl.load(item + 4) + tl.arange(0, TILE_COLUMNS)
    channels = tl.load(target + CHANNELS).to(tl.int32)
    height, width = tl.load(target + HEIGHT).to(tl.int32), tl.load(target + WIDTH).to(tl.int32)
    channel = tl.arange(0, TILE_CHANNELS)
    lives, channel_lives = pixel < height * width, channel < channels
    constant = _pointer(target + CONSTANT, tl.float32) + sample * channels
    sums = tl.zeros((TILE_COLUMNS, TILE_CHANNELS), tl.float32)
    sums += tl.load(constant + channel, mask=channel_lives, other=0.0)[None, :]

    y, x = pixel // width, pixel % width
    group = tl.load(target + FIRST_GROUP)
    for _ in range(0, tl.load(target + GROUPS).to(tl.int32)):
        from_height = tl.load(table + group + GROUP_HEIGHT).to(tl.int32)
        from_width = tl.load(table + group + GROUP_WIDTH).to(tl.int32)
        top, bottom, down = _tap(y, from_height, height)
        left, right, along = _tap(x, from_width, width)
        grown = _pointer(table + group + GROWN, tl.float32) + sample * from_height * from_width * channels
        for corner in tl.static_range(4):
            at = (bottom if corner // 2 else top) * from_width + (right if corner % 2 else left)
            share = (down if corner // 2 else 1 - down) * (along if corner % 2 else 1 - along)
            sums -= share[:, None] * _dense(grown, at, lives, channel, channels, CHANNEL_VECTOR)
        group += GROUP_WORDS

    if SECOND:
        sums = _apply(
            target, V_MAP, FACTOR, MAP_TYPE, sample, pixel, lives, channel, channels, sums, PRECISION, ROUND, VECTOR,
            CHANNEL_VECTOR, STEP,
        )  # fmt: skip
        sums = _apply(
            target, MAP, V_FACTOR, MAP_TYPE, sample, pixel, lives, channel, channels, sums, PRECISION, ROUND, VECTOR,
            CHANNEL_VECTOR, STEP,
        )  # fmt: skip
    else:
        sums = _apply(
            target, MAP, FACTOR, MAP_TYPE, sample, pixel, lives, channel, channels, sums, PRECISION, ROUND, VECTOR,
            CHANNEL_VECTOR, STEP,
        )  # fmt: skip
    pair = tl.load(target + FIRST_PAIR)
    for _ in range(0, tl.load(target + OWN_PAIRS).to(tl.int32)):
        rows = tl.load(table + pair + SOURCE_CHANNELS).to(tl.int32)
        for start in range(0, rows, STEP):
            k = start + tl.arange(0, STEP)
            s = _pixels_of(table + pair + SOURCE, MAP_TYPE, sample, pixel, lives, k, k < rows, VECTOR)
            scaled = _scaled_weight(table, table + pair, W_TYPE, sample, k, channel, channels, SECOND)
            s, scaled = _rounded(s, tl.float32, ROUND), _rounded(-scaled, tl.float32, ROUND)
            sums = tl.dot(s, scaled, sums, input_precision=PRECISION)
        pair = tl.load(table + pair + NEXT)

    view = target + D_MAP
    base = _pointer(view, D_TYPE) + sample * tl.load(view + 1)
    to = _pointers(base, pixel, channel * tl.load(view + 2).to(tl.int32), 0, D_VECTOR)
    tl.store(to, sums.to(D_TYPE), mask=lives[:, None] & channel_lives[None, :])

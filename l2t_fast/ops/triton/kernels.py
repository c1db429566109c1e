"""The kernels. What they compute, how work is cut and what they cost: README.md beside this file.

A program takes the item of its number from a list in device memory; items name records of the table by their first
words. A row is a source channel of one of a target's pairs, which stand in line; a column is a pixel of a sample, and
those of all samples of a part stand in line, so that a tile may span samples. Whatever lies beyond the end of anything
is read as 0.
"""

import triton
import triton.language as tl

from l2t_fast.ops.triton.records import (
    ALPHA,
    BIAS,
    CHANNELS,
    COLUMN,
    COLUMNS,
    D_BIAS,
    D_MAP,
    D_WEIGHT,
    E_STRIDE,
    FACTOR_SUMS,
    FIRST_ROW,
    FIRST_SAMPLE,
    FIRST_TILE,
    HEIGHT,
    LATER,
    LOSS,
    LOSS_COUNT,
    LOSS_SUMS,
    MAP,
    PACKED,
    PACKED_STRIDE,
    PART_COLUMNS,
    ROWS,
    SLOTS,
    SOURCE,
    SOURCE_CHANNELS,
    SOURCE_HEIGHT,
    SOURCE_WIDTH,
    SPLITS,
    SQUARE_SUMS,
    SQUARES,
    TILE_COLUMNS,
    TILES,
    TURNED,
    TURNED_STRIDE,
    V_ALPHA,
    V_BIAS,
    V_E,
    V_MAP,
    V_PACKED,
    V_ROWS,
    V_TURNED,
    V_WEIGHT,
    WEIGHT,
    WEIGHT_SUMS,
    WIDTH,
    E,
)

# words of an item of each kernel
PACK_ITEM = tl.constexpr(5)  # pair, target, first row in the pair, row to write zeros up to, first channel
DIFFERENCES_ITEM = tl.constexpr(6)  # part, target, pair, first row in the pair, tile of columns, number for the loss
GRADIENTS_ITEM = tl.constexpr(8)  # part, target, kind, first channel, first row or column; columns from and to, split
SUMS_ITEM = tl.constexpr(6)  # kind, pair, target, part, sample in the part, first row in the pair or element

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)  # which knows no PTX

PACK_ROWS, PACK_CHANNELS = tl.constexpr(32), tl.constexpr(64)
SUM_ROWS, SUM_TILES, SUM_CHUNK = tl.constexpr(128), tl.constexpr(16), tl.constexpr(1024)

# kinds of items
OF_TARGET, OF_PROJECTION = tl.constexpr(0), tl.constexpr(1)
OF_LOSS, OF_SQUARES, OF_WEIGHT, OF_BIAS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _pointer(record, TYPE: tl.constexpr):
    return tl.load(record).to(tl.pointer_type(TYPE))


@triton.jit
def _only_if(condition, lives):
    """``lives`` if a scalar condition holds, else nothing lives (``&`` of the two fails in Triton's interpreter)."""
    return tl.where(condition, lives, False)


@triton.jit
def _pointers(base, at_first, at_second, AXIS: tl.constexpr, VECTOR: tl.constexpr):
    """Where a tile lies in memory. VECTOR elements in a row along an axis are contiguous and aligned.

    With VECTOR 1 the compiler is told no alignment; so it reads element by element, a warp's threads along the axis.
    """
    # hints are given to the sum: those that a function's arguments have are lost
    pointers = base + (at_first[:, None] + at_second[None, :])
    size: tl.constexpr = VECTOR * pointers.dtype.element_ty.primitive_bitwidth // 8
    contiguous: tl.constexpr = VECTOR if VECTOR > 1 else 16
    if VECTOR > 1:
        pointers = tl.multiple_of(pointers, [size, 1] if AXIS == 0 else [1, size])
    return tl.max_contiguous(pointers, [contiguous, 1] if AXIS == 0 else [1, contiguous])


@triton.jit
def _lives(first, second, AXIS: tl.constexpr, VECTOR: tl.constexpr):
    """A tile's mask, of one for each of its axes, or None; VECTOR elements in a row live or not together."""
    if first is None:
        lives = second[None, :]
    elif second is None:
        lives = first[:, None]
    else:
        lives = first[:, None] & second[None, :]
        if VECTOR > 1:
            lives = tl.max_constancy(lives, [VECTOR, 1] if AXIS == 0 else [1, VECTOR])
    return lives


@triton.jit
def _tile(base, at_first, at_second, first, second, AXIS: tl.constexpr, VECTOR: tl.constexpr):
    """A tile with one offset and one mask (or None) for each place on either axis."""
    pointers = _pointers(base, at_first, at_second, AXIS, VECTOR)
    return tl.load(pointers, mask=_lives(first, second, AXIS, VECTOR), other=0.0)


@triton.jit
def _rounded(values, TYPE: tl.constexpr, ROUND: tl.constexpr):
    """Values in the type of products; with ROUND float32 is rounded to tf32, which tensor cores would cut it to."""
    values = values.to(TYPE)
    if ROUND and TYPE.primitive_bitwidth == 32:
        values = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [values], dtype=tl.float32, is_pure=True, pack=1
        )
    return values


@triton.jit
def _opaque(values):
    """Of 32 bits, behind an operation that Triton does not see through, and that is none in machine code."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [values], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _plus_product(sums, left, right, FROM: tl.constexpr, PRECISION: tl.constexpr):
    """sums + left right; ``left`` was read as FROM. If that is its type, of 16 bits, tensor cores read it in shared
    memory; else from registers.

    From registers Hopper's tensor cores read while a warp goes on. In a pipelined loop Triton keeps such products in
    flight until the next turn, and ptxas before 13.3, which Triton up to 3.8 has, lets that turn write those registers
    too early (triton-lang/triton issue 9433; up to 3.6 Triton's own code does). An operation on the sums makes it wait
    for the products; copies stay in flight.
    """
    sums = tl.dot(left, right, sums, input_precision=PRECISION)
    if COMPILED:
        TYPE: tl.constexpr = left.dtype
        if TYPE != FROM or TYPE.primitive_bitwidth != 16:
            sums = _opaque(sums)
    return sums


@triton.jit
def _tap(position, size_in, size_out):
    """The bilinear resize along one axis, half-pixel centres: lower index, upper index, the upper one's share.

    In integers, so that the share is exact to one rounding at any size.
    """
    twice = tl.maximum((2 * position + 1) * size_in - size_out, 0)
    lower = twice // (2 * size_out)
    share = (twice - lower * (2 * size_out)).to(tl.float32) / (2 * size_out).to(tl.float32)
    return lower, tl.minimum(lower + 1, size_in - 1), share


@triton.jit
def _strides(view, INDEX: tl.constexpr):
    """Of a map: of a sample, a channel, a row and a column."""
    by_sample, by_channel = tl.load(view + 1).to(INDEX), tl.load(view + 2).to(INDEX)
    return by_sample, by_channel, tl.load(view + 3).to(INDEX), tl.load(view + 4).to(INDEX)


@triton.jit
def _at(strides, run, pixel, width, FLAT: tl.constexpr):
    """Where pixels lie in a map, from their first sample on. FLAT: the rows of a channel stand in line."""
    if FLAT:
        at = run * strides[0] + pixel * strides[3]
    else:
        at = run * strides[0] + (pixel // width) * strides[2] + (pixel % width) * strides[3]
    return at


@triton.jit
def _resized(
    pair, TYPE, first, run, pixel, lives, target, row, row_lives, AXIS: tl.constexpr, VECTOR, INDEX: tl.constexpr
):
    """A tile of S~, (columns, rows), float32: the pair's source map, resized to the target's size as it is read."""
    height, width = tl.load(target + HEIGHT).to(INDEX), tl.load(target + WIDTH).to(INDEX)
    from_height, from_width = tl.load(pair + SOURCE_HEIGHT).to(INDEX), tl.load(pair + SOURCE_WIDTH).to(INDEX)
    view = pair + SOURCE
    base = _pointer(view, TYPE) + first * tl.load(view + 1)
    by_sample, by_channel, by_y, by_x = _strides(view, INDEX)
    at_row, at = row * by_channel, run * by_sample
    y, x = pixel // width, pixel % width
    if (from_height == height) & (from_width == width):
        at += y * by_y + x * by_x
        resized = _tile(base, at, at_row, lives, row_lives, AXIS, VECTOR).to(tl.float32)
    else:
        top, bottom, down = _tap(y, from_height, height)
        left, right, along = _tap(x, from_width, width)
        at += top * by_y + left * by_x
        below, beside = (bottom - top) * by_y, (right - left) * by_x
        along, down = along[:, None], down[:, None]
        upper = (1 - along) * _tile(base, at, at_row, lives, row_lives, AXIS, VECTOR).to(tl.float32)
        upper += along * _tile(base, at + beside, at_row, lives, row_lives, AXIS, VECTOR).to(tl.float32)
        at += below
        lower = (1 - along) * _tile(base, at, at_row, lives, row_lives, AXIS, VECTOR).to(tl.float32)
        lower += along * _tile(base, at + beside, at_row, lives, row_lives, AXIS, VECTOR).to(tl.float32)
        resized = (1 - down) * upper + down * lower
    return resized


@triton.jit
def _bias(view, TYPE: tl.constexpr, row, row_lives, INDEX: tl.constexpr):
    """A stretch of a bias (or of its direction), (rows,), float32; zeros where it has no tensor."""
    address = tl.load(view)
    pointers = address.to(tl.pointer_type(TYPE)) + row * tl.load(view + 1).to(INDEX)
    return tl.load(pointers, mask=_only_if(address != 0, row_lives), other=0.0).to(tl.float32)


@triton.jit
def _coefficients(view, sample, column, row, row_lives, INDEX: tl.constexpr):
    """A sample's coefficients (or their direction) from a column on, (rows,); zeros where there is no tensor."""
    address, stride = tl.load(view), tl.load(view + 2)
    base = address.to(tl.pointer_type(tl.float32)) + (sample * tl.load(view + 1) + column * stride)
    return tl.load(base + row * stride.to(INDEX), mask=_only_if(address != 0, row_lives), other=0.0)


@triton.jit
def _weight(view, TYPE: tl.constexpr, row, channel, lives):
    """A tile of a projection's weight (or of its direction), (rows, channels); zeros where it has no tensor."""
    address = tl.load(view)
    at = row[:, None] * tl.load(view + 1) + channel[None, :] * tl.load(view + 2)
    return tl.load(address.to(tl.pointer_type(TYPE)) + at, mask=_only_if(address != 0, lives), other=0.0)


@triton.jit
def pack_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, PACK_ITEM)
    SECOND: tl.constexpr,  # the directions as well
    W_TYPE: tl.constexpr,
    DOT_TYPE: tl.constexpr,  # of W T
    E_TYPE: tl.constexpr,  # of products with E
    ROUND: tl.constexpr,
):
    """A target's weights, all pairs' rows in line, in the types of the products, as they are and turned."""
    item = items + tl.program_id(0) * PACK_ITEM
    pair, target = table + tl.load(item), table + tl.load(item + 1)
    row = tl.load(item + 2) + tl.arange(0, PACK_ROWS)
    channel = tl.load(item + 4) + tl.arange(0, PACK_CHANNELS)
    channels = tl.load(target + CHANNELS)
    row_lives = row < tl.load(pair + SOURCE_CHANNELS)
    lives = row_lives[:, None] & (channel < channels)[None, :]
    stride, turned_stride = tl.load(target + PACKED_STRIDE), tl.load(target + TURNED_STRIDE)
    to_row = tl.load(pair + FIRST_ROW) + row
    plain_at = to_row[:, None] * stride + channel[None, :]
    plain_lives = row_lives[:, None] & (channel < stride)[None, :]
    turned_at = channel[:, None] * turned_stride + to_row[None, :]
    turned_lives = (channel < channels)[:, None] & (row < tl.load(item + 3))[None, :]
    for moves in tl.static_range(2 if SECOND else 1):
        w = _weight(pair + (V_WEIGHT if moves else WEIGHT), W_TYPE, row, channel, lives)
        plain = _rounded(w, DOT_TYPE, ROUND)
        tl.store(_pointer(target + (V_PACKED if moves else PACKED), DOT_TYPE) + plain_at, plain, mask=plain_lives)
        turned = tl.trans(_rounded(w, E_TYPE, ROUND))
        tl.store(_pointer(target + (V_TURNED if moves else TURNED), E_TYPE) + turned_at, turned, mask=turned_lives)


@triton.jit
def differences_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, DIFFERENCES_ITEM)
    SECOND: tl.constexpr,  # Hessian-vector product instead of loss and gradient
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    DOT_TYPE: tl.constexpr,  # of W T
    E_TYPE: tl.constexpr,  # of products with E
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,  # float32 to tf32, by us
    S_AXIS: tl.constexpr,  # along which maps are read: 0 columns, 1 channels
    T_AXIS: tl.constexpr,
    S_VECTOR: tl.constexpr,  # see _tile
    T_VECTOR: tl.constexpr,
    FLAT: tl.constexpr,
    INDEX: tl.constexpr,  # integer that holds every offset from a tile's first sample
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    STEP: tl.constexpr,  # channels
):
    """D = W T + b - S~ and E = 2 alpha D, a tile of a pair's rows and of columns; and sums over the tile's columns.

    With SECOND V = W vT + vW T + vb and E' = 2 alpha V + 2 valpha D beside them, and sums of 2 D V and of E'.
    """
    item = items + tl.program_id(0) * DIFFERENCES_ITEM
    part, target, pair = table + tl.load(item), table + tl.load(item + 1), table + tl.load(item + 2)
    row = tl.load(item + 3) + tl.arange(0, TILE_ROWS)
    tile = tl.load(item + 4)
    row_lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    first_row = tl.load(pair + FIRST_ROW)
    all_row = first_row.to(tl.int32) + row

    width = tl.load(target + WIDTH).to(tl.int32)
    pixels = tl.load(target + HEIGHT).to(tl.int32) * width
    columns = tl.load(part + PART_COLUMNS).to(tl.int32)
    start = tile * TILE_COLUMNS
    first = start // pixels  # sample of the part
    place = start - first * pixels + tl.arange(0, TILE_COLUMNS)
    run, pixel = place // pixels, place % pixels
    column = start + tl.arange(0, TILE_COLUMNS)
    lives = column < columns
    first_sample = tl.load(part + FIRST_SAMPLE) + first

    # S~ before the products: its loads need the registers
    s = _resized(pair, S_TYPE, first_sample, run, pixel, lives, target, row, row_lives, S_AXIS, S_VECTOR, INDEX)
    d = _bias(pair + BIAS, B_TYPE, row, row_lives, INDEX)[None, :] - s
    if SECOND:
        v = (
            tl.zeros((TILE_COLUMNS, TILE_ROWS), tl.float32)
            + _bias(pair + V_BIAS, B_TYPE, row, row_lives, INDEX)[None, :]
        )

    view = target + MAP
    maps = _pointer(view, T_TYPE) + first_sample * tl.load(view + 1)
    strides = _strides(view, INDEX)
    at, by_channel = _at(strides, run, pixel, width, FLAT), strides[1]
    if SECOND:
        moved_view = target + V_MAP
        moved = _pointer(moved_view, T_TYPE) + first_sample * tl.load(moved_view + 1)
        moved_strides = _strides(moved_view, INDEX)
        moved_at, moved_by_channel = _at(moved_strides, run, pixel, width, FLAT), moved_strides[1]
        moved_lives = _only_if(tl.load(moved_view) != 0, lives)
    packed = _pointer(target + PACKED, DOT_TYPE)
    if SECOND:
        v_packed = _pointer(target + V_PACKED, DOT_TYPE)
    weight_at = all_row * tl.load(target + PACKED_STRIDE).to(INDEX)
    vector: tl.constexpr = 128 // DOT_TYPE.primitive_bitwidth
    channels = tl.load(target + CHANNELS).to(tl.int32)
    for begin in range(0, channels, STEP):
        k = begin + tl.arange(0, STEP)
        k_lives = k < channels
        w = _tile(packed, weight_at, k, row_lives, None, 1, vector)
        t = _tile(maps, at, k * by_channel, lives, k_lives, T_AXIS, T_VECTOR)
        t = _rounded(t, DOT_TYPE, ROUND)
        d = _plus_product(d, t, tl.trans(w), T_TYPE, PRECISION)
        if SECOND:
            v_t = _tile(moved, moved_at, k * moved_by_channel, moved_lives, k_lives, T_AXIS, T_VECTOR)
            v = _plus_product(v, _rounded(v_t, DOT_TYPE, ROUND), tl.trans(w), T_TYPE, PRECISION)
            v_w = _tile(v_packed, weight_at, k, row_lives, None, 1, vector)
            v = _plus_product(v, t, tl.trans(v_w), T_TYPE, PRECISION)

    # sample by sample, since each has coefficients of its own, and Q is summed by sample
    e = tl.zeros((TILE_COLUMNS, TILE_ROWS), tl.float32)  # the factor of W and T
    if SECOND:
        v_e = tl.zeros((TILE_COLUMNS, TILE_ROWS), tl.float32)  # the factor of their directions
    loss = tl.zeros((TILE_ROWS,), tl.float32)
    rows = tl.load(target + ROWS).to(tl.int32)
    at_tile = tl.load(part + FIRST_TILE) + tile
    slots = tl.load(target + SLOTS)
    squares = _pointer(target + SQUARE_SUMS, tl.float32) + (at_tile * slots * rows + first_row)
    alpha_column = tl.load(pair + COLUMN)
    for each in range(0, (tl.minimum(start + TILE_COLUMNS, columns) - 1) // pixels - first + 1):
        mine = (lives & (run == each))[:, None]
        alpha = _coefficients(table + ALPHA, first_sample + each, alpha_column, row, row_lives, INDEX)
        twice = (2 * alpha)[None, :]
        if SECOND:
            v_alpha = _coefficients(table + V_ALPHA, first_sample + each, alpha_column, row, row_lives, INDEX)
            v_twice = (2 * v_alpha)[None, :]
            e = tl.where(mine, twice * v + v_twice * d, e)
            v_e = tl.where(mine, twice * d, v_e)
            square = tl.sum(tl.where(mine, 2 * d * v, 0.0), axis=0)
        else:
            e = tl.where(mine, twice * d, e)
            square = tl.sum(tl.where(mine, d * d, 0.0), axis=0)
            loss += tl.where(row_lives, alpha * square, 0.0)
        tl.store(squares + each * rows + row, square, mask=row_lives)
    if not SECOND:
        tl.store(_pointer(table + LOSS_SUMS, tl.float32) + tl.load(item + 5), tl.sum(loss, axis=0))
    factors = _pointer(target + FACTOR_SUMS, tl.float32) + (at_tile * rows + first_row)
    tl.store(factors + row, tl.sum(e, axis=0), mask=row_lives)

    address = tl.load(part + E)
    if address != 0:
        e_vector: tl.constexpr = 128 // E_TYPE.primitive_bitwidth
        e_at = all_row * tl.load(part + E_STRIDE).to(INDEX)
        to = _pointers(address.to(tl.pointer_type(E_TYPE)), column, e_at, 0, e_vector)
        tl.store(to, _rounded(e, E_TYPE, ROUND), mask=row_lives[None, :])
        if SECOND:
            to = _pointers(_pointer(part + V_E, E_TYPE), column, e_at, 0, e_vector)
            tl.store(to, _rounded(v_e, E_TYPE, ROUND), mask=row_lives[None, :])


@triton.jit
def _times_weights(
    sums, e, e_stride, column, turned, turned_at, channel_lives, rows, TYPE, PRECISION, ROUND, STEP: tl.constexpr
):
    """sums + E^T W, (columns, channels): a sum over all rows of a target."""
    vector: tl.constexpr = 128 // TYPE.primitive_bitwidth
    for begin in range(0, rows, STEP):
        k = begin + tl.arange(0, STEP)
        left = _tile(e, column, k * e_stride, None, k < rows, 0, vector)
        w = _tile(turned, turned_at, k, channel_lives, None, 1, vector)
        # E is rounded already, but an operation takes it to registers, from where tensor cores read it turned
        if ROUND and TYPE.primitive_bitwidth == 32:
            left = _opaque(left)
        sums = _plus_product(sums, left, tl.trans(w), TYPE, PRECISION)
    return sums


@triton.jit
def _times_maps(
    sums, e, e_at, row_lives, view, first_sample, begin, end, columns, pixels, width, channel, channel_lives,
    T_TYPE, TYPE: tl.constexpr, PRECISION, ROUND, AXIS: tl.constexpr, VECTOR, FLAT, INDEX: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """sums + T E^T, (channels, rows): a sum over some columns of a part."""
    vector: tl.constexpr = 128 // TYPE.primitive_bitwidth
    first = begin // pixels
    maps = _pointer(view, T_TYPE) + (first_sample + first) * tl.load(view + 1)
    strides = _strides(view, INDEX)
    at_channel = channel * strides[1]
    place = begin - first * pixels + tl.arange(0, STEP)
    run, pixel = place // pixels, place % pixels
    runs, pixels_more = STEP // pixels, STEP % pixels
    for start in range(begin, end, STEP):
        column = start + tl.arange(0, STEP)
        at = _at(strides, run, pixel, width, FLAT)
        t = _tile(maps, at_channel, at, channel_lives, column < columns, 1 - AXIS, VECTOR)
        right = _tile(e, e_at, column, row_lives, None, 1, vector)
        sums = _plus_product(sums, _rounded(t, TYPE, ROUND), tl.trans(right), T_TYPE, PRECISION)
        pixel += pixels_more  # without a division
        over = pixel >= pixels
        pixel -= tl.where(over, pixels, 0)
        run += runs + tl.where(over, 1, 0)
    return sums


@triton.jit
def _target_tile(
    part, target, item, rows, columns, channels, pixels, width,
    SECOND: tl.constexpr, D_TYPE: tl.constexpr, E_TYPE: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    AXIS: tl.constexpr, VECTOR: tl.constexpr, FLAT: tl.constexpr, INDEX: tl.constexpr,
    TILE_COLUMNS: tl.constexpr, TILE_CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of dT: columns and channels."""
    channel = tl.load(item + 3) + tl.arange(0, TILE_CHANNELS)
    channel_lives = channel < channels
    start = tl.load(item + 4)
    column = start + tl.arange(0, TILE_COLUMNS)
    e_stride = tl.load(part + E_STRIDE).to(INDEX)
    turned_at = channel * tl.load(target + TURNED_STRIDE).to(INDEX)
    sums = tl.zeros((TILE_COLUMNS, TILE_CHANNELS), tl.float32)
    sums = _times_weights(
        sums, _pointer(part + E, E_TYPE), e_stride, column, _pointer(target + TURNED, E_TYPE), turned_at,
        channel_lives, rows, E_TYPE, PRECISION, ROUND, STEP,
    )  # fmt: skip
    if SECOND:
        sums = _times_weights(
            sums, _pointer(part + V_E, E_TYPE), e_stride, column, _pointer(target + V_TURNED, E_TYPE), turned_at,
            channel_lives, tl.load(target + V_ROWS).to(tl.int32), E_TYPE, PRECISION, ROUND, STEP,
        )  # fmt: skip
    first = start // pixels
    place = start - first * pixels + tl.arange(0, TILE_COLUMNS)
    view = target + D_MAP
    base = _pointer(view, D_TYPE) + (tl.load(part + FIRST_SAMPLE) + first) * tl.load(view + 1)
    strides = _strides(view, INDEX)
    at = _at(strides, place // pixels, place % pixels, width, FLAT)
    lives = _lives(column < columns, channel_lives, AXIS, VECTOR)
    tl.store(_pointers(base, at, channel * strides[1], AXIS, VECTOR), sums.to(D_TYPE), mask=lives)


@triton.jit
def _projection_tile(
    part, target, item, rows, columns, channels, pixels, width,
    SECOND: tl.constexpr, T_TYPE: tl.constexpr, E_TYPE: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    AXIS: tl.constexpr, VECTOR: tl.constexpr, FLAT: tl.constexpr, INDEX: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of dW, channels and rows, of some columns of a part; added to that of the parts before it."""
    channel = tl.load(item + 3) + tl.arange(0, TILE_CHANNELS)
    channel_lives = channel < channels
    row = tl.load(item + 4) + tl.arange(0, TILE_ROWS)
    row_lives = row < rows
    begin, end = tl.load(item + 5), tl.load(item + 6)
    e_at = row * tl.load(part + E_STRIDE).to(INDEX)
    first_sample = tl.load(part + FIRST_SAMPLE)
    sums = tl.zeros((TILE_CHANNELS, TILE_ROWS), tl.float32)
    sums = _times_maps(
        sums, _pointer(part + E, E_TYPE), e_at, row_lives, target + MAP, first_sample, begin, end, columns, pixels,
        width, channel, channel_lives, T_TYPE, E_TYPE, PRECISION, ROUND, AXIS, VECTOR, FLAT, INDEX, STEP,
    )  # fmt: skip
    if SECOND:
        moved = target + V_MAP
        end = tl.where(tl.load(moved) != 0, end, begin)
        sums = _times_maps(
            sums, _pointer(part + V_E, E_TYPE), e_at, row_lives, moved, first_sample, begin, end, columns, pixels,
            width, channel, channel_lives, T_TYPE, E_TYPE, PRECISION, ROUND, AXIS, VECTOR, FLAT, INDEX, STEP,
        )  # fmt: skip
    to = _pointer(target + WEIGHT_SUMS, tl.float32) + tl.load(item + 7).to(tl.int64) * rows * channels
    to += channel[:, None] + row[None, :] * channels.to(tl.int64)
    lives = channel_lives[:, None] & row_lives[None, :]
    if tl.load(part + LATER) != 0:
        sums += tl.load(to, mask=lives, other=0.0)
    tl.store(to, sums, mask=lives)


@triton.jit
def gradients_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, GRADIENTS_ITEM)
    SECOND: tl.constexpr,
    T_TYPE: tl.constexpr,
    D_TYPE: tl.constexpr,  # of dT
    E_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    T_AXIS: tl.constexpr,
    D_AXIS: tl.constexpr,
    T_VECTOR: tl.constexpr,
    D_VECTOR: tl.constexpr,
    FLAT: tl.constexpr,
    INDEX: tl.constexpr,
    TILE_ROWS: tl.constexpr,  # of dW
    TILE_COLUMNS: tl.constexpr,  # of dT
    TILE_CHANNELS: tl.constexpr,
    STEP: tl.constexpr,  # rows of the sum of dT, columns of that of dW
):
    """From E: dT = sum over rows of W^T E, or dW = sum over columns of E T^T. With SECOND E' takes E's place, and E
    with the directions of W and T is a second term of each sum."""
    item = items + tl.program_id(0) * GRADIENTS_ITEM
    part, target = table + tl.load(item), table + tl.load(item + 1)
    channels, rows = tl.load(target + CHANNELS).to(tl.int32), tl.load(target + ROWS).to(tl.int32)
    width = tl.load(target + WIDTH).to(tl.int32)
    pixels = tl.load(target + HEIGHT).to(tl.int32) * width
    columns = tl.load(part + PART_COLUMNS).to(tl.int32)
    if tl.load(item + 2) == OF_TARGET:
        _target_tile(
            part, target, item, rows, columns, channels, pixels, width, SECOND, D_TYPE, E_TYPE, PRECISION, ROUND,
            D_AXIS, D_VECTOR, FLAT, INDEX, TILE_COLUMNS, TILE_CHANNELS, STEP,
        )  # fmt: skip
    else:
        _projection_tile(
            part, target, item, rows, columns, channels, pixels, width, SECOND, T_TYPE, E_TYPE, PRECISION, ROUND,
            T_AXIS, T_VECTOR, FLAT, INDEX, TILE_ROWS, TILE_CHANNELS, STEP,
        )  # fmt: skip


@triton.jit
def _sum_losses(table):
    at = tl.arange(0, SUM_CHUNK)
    total = tl.zeros((SUM_CHUNK,), tl.float32)
    sums, count = _pointer(table + LOSS_SUMS, tl.float32), tl.load(table + LOSS_COUNT).to(tl.int32)
    for start in range(0, count, SUM_CHUNK):
        total += tl.load(sums + start + at, mask=start + at < count, other=0.0)
    tl.store(_pointer(table + LOSS, tl.float32), tl.sum(total, axis=0))


@triton.jit
def _sum_squares(table, pair, target, part, local, row):
    """Q of a sample, the part's number ``local``: of all tiles that touch it."""
    lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    rows, slots = tl.load(target + ROWS), tl.load(target + SLOTS)
    pixels = (tl.load(target + HEIGHT) * tl.load(target + WIDTH)).to(tl.int32)
    width = tl.load(target + TILE_COLUMNS).to(tl.int32)
    begin, first_tile = local * pixels, tl.load(part + FIRST_TILE)
    sums = _pointer(target + SQUARE_SUMS, tl.float32) + tl.load(pair + FIRST_ROW) + row
    square = tl.zeros((SUM_ROWS,), tl.float32)
    for tile in range(begin // width, (begin + pixels - 1) // width + 1):
        slot = local - tile * width // pixels
        square += tl.load(sums + ((first_tile + tile) * slots + slot) * rows, mask=lives, other=0.0)
    sample = tl.load(part + FIRST_SAMPLE) + local
    to = _pointer(table + SQUARES, tl.float32) + sample * tl.load(table + COLUMNS) + tl.load(pair + COLUMN)
    tl.store(to + row, square, mask=lives)


@triton.jit
def _sum_weights(pair, target, first_element, TYPE: tl.constexpr):
    rows, channels = tl.load(target + ROWS), tl.load(target + CHANNELS)
    element = first_element + tl.arange(0, SUM_CHUNK)
    lives = element < tl.load(pair + SOURCE_CHANNELS) * channels
    sums = _pointer(target + WEIGHT_SUMS, tl.float32) + tl.load(pair + FIRST_ROW) * channels + element
    weight = tl.zeros((SUM_CHUNK,), tl.float32)
    for split in range(0, tl.load(target + SPLITS).to(tl.int32)):
        weight += tl.load(sums + split * (rows * channels), mask=lives, other=0.0)
    tl.store(_pointer(pair + D_WEIGHT, TYPE) + element, weight.to(TYPE), mask=lives)


@triton.jit
def _sum_biases(pair, target, row, TYPE: tl.constexpr):
    lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
    rows, tiles = tl.load(target + ROWS), tl.load(target + TILES).to(tl.int32)
    sums = _pointer(target + FACTOR_SUMS, tl.float32) + (tl.load(pair + FIRST_ROW) + row)[None, :]
    bias = tl.zeros((SUM_TILES, SUM_ROWS), tl.float32)
    for start in range(0, tiles, SUM_TILES):
        tile = start + tl.arange(0, SUM_TILES)
        both = (tile < tiles)[:, None] & lives[None, :]
        bias += tl.load(sums + tile[:, None] * rows, mask=both, other=0.0)
    tl.store(_pointer(pair + D_BIAS, TYPE) + row, tl.sum(bias, axis=0).to(TYPE), mask=lives)


@triton.jit
def sums_kernel(
    table,  # int64: see records.py
    items,  # int32 (programs, SUMS_ITEM)
    D_W_TYPE: tl.constexpr,  # of dW
    D_B_TYPE: tl.constexpr,
):
    """Adds partial sums in a fixed order: the loss; Q, or its derivative; dW; db."""
    item = items + tl.program_id(0) * SUMS_ITEM
    kind, begin = tl.load(item), tl.load(item + 5)
    pair, target, part = table + tl.load(item + 1), table + tl.load(item + 2), table + tl.load(item + 3)
    if kind == OF_LOSS:
        _sum_losses(table)
    elif kind == OF_WEIGHT:
        _sum_weights(pair, target, begin, D_W_TYPE)
    elif kind == OF_BIAS:
        _sum_biases(pair, target, begin + tl.arange(0, SUM_ROWS), D_B_TYPE)
    else:
        _sum_squares(table, pair, target, part, tl.load(item + 4), begin + tl.arange(0, SUM_ROWS))

"""The kernels. What they compute, how work is cut and what they cost: README.md beside this file.

Every kernel is persistent: a program takes items number ``program_id``, ``program_id + num_programs``, ... of a list in
device memory. Tiles are (pixels, channels) for target maps, (rows, channels) for projections, where a row is a source
channel of a pair. Pixels of all samples stand in one line, so that a tile of pixels may span samples; whatever lies
beyond the end of anything is read as 0.
"""

import triton
import triton.language as tl

from l2t_fast.ops.triton.records import (
    ALPHA,
    BATCH,
    BIAS,
    CHANNELS,
    COLUMN,
    COLUMNS,
    D_BIAS,
    D_MAP,
    D_WEIGHT,
    HEIGHT,
    MAP,
    PAIR_WORDS,
    PAIRS,
    SOURCE,
    SOURCE_CHANNELS,
    SOURCE_HEIGHT,
    SOURCE_WIDTH,
    SQUARES,
    TARGET,
    TARGET_WORDS,
    TARGETS,
    V_ALPHA,
    V_BIAS,
    V_MAP,
    V_WEIGHT,
    WEIGHT,
    WIDTH,
)

SUM_CHUNK = tl.constexpr(1024)

# words of an item of each kernel
TARGET_ITEM = tl.constexpr(6)  # target, first sample, first pixel in it, first channel, first row block, row blocks
PROJECTION_ITEM = tl.constexpr(7)  # pair, first row, first sample, samples, first channel; numbers of partial sums
SUM_ITEM = tl.constexpr(10)  # pair, rows from and to, first channel, width; offset, step, the bias's two; summands


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
def _only_if(condition, lives):
    """``lives`` if a scalar condition holds, else nothing lives (``&`` of the two fails in Triton's interpreter)."""
    return tl.where(condition, lives, False)


@triton.jit
def _tile(base, at_pixel, at_channel, pixel_lives, channel_lives, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr):
    """A tile of a map, (pixels, channels), read along the axis that is contiguous in memory.

    VECTOR: so many elements in a row along that axis are contiguous, aligned, and live or not together.
    """
    size: tl.constexpr = VECTOR * base.dtype.element_ty.primitive_bitwidth // 8
    if CHANNELS_LAST:
        pointers = base + at_pixel[:, None] + at_channel[None, :]
        lives = pixel_lives[:, None] & channel_lives[None, :]
        if VECTOR > 1:
            pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, size]), [1, VECTOR])
            lives = tl.max_constancy(lives, [1, VECTOR])
        return tl.load(pointers, mask=lives, other=0.0)
    else:
        pointers = base + at_channel[:, None] + at_pixel[None, :]
        lives = channel_lives[:, None] & pixel_lives[None, :]
        if VECTOR > 1:
            pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, size]), [1, VECTOR])
            lives = tl.max_constancy(lives, [1, VECTOR])
        return tl.trans(tl.load(pointers, mask=lives, other=0.0))


@triton.jit
def _at(view, spot, INDEX: tl.constexpr):
    """Where pixels lie in a map (B, C, H, W): the offset of their first sample, and their own from there."""
    first, run, y, x = spot
    stride, stride_y, stride_x = tl.load(view + 1), tl.load(view + 3), tl.load(view + 4)
    return first * stride, run * stride.to(INDEX) + y * stride_y.to(INDEX) + x * stride_x.to(INDEX)


@triton.jit
def _map(view, TYPE, spot, pixel_lives, channel, channel_lives, CHANNELS_LAST, VECTOR, INDEX: tl.constexpr):
    """A tile of the map whose view lies at ``view``; zeros where it has no tensor.

    ``spot`` is where the pixels are: (first sample, samples since then, y, x), a scalar and three vectors.
    """
    address = tl.load(view)
    at_first, at_pixel = _at(view, spot, INDEX)
    at_channel = channel * tl.load(view + 2).to(INDEX)
    base = address.to(tl.pointer_type(TYPE)) + at_first
    return _tile(base, at_pixel, at_channel, _only_if(address != 0, pixel_lives), channel_lives, CHANNELS_LAST, VECTOR)


@triton.jit
def _resized(pair, TYPE, spot, pixel_lives, height, width, row, row_lives, CHANNELS_LAST, VECTOR, INDEX: tl.constexpr):
    """A tile of S~, (pixels, rows), float32: the pair's source map, resized to (height, width) as it is read."""
    first, run, y, x = spot
    from_height, from_width = tl.load(pair + SOURCE_HEIGHT).to(tl.int32), tl.load(pair + SOURCE_WIDTH).to(tl.int32)
    view = pair + SOURCE
    base = tl.load(view).to(tl.pointer_type(TYPE))
    at_row = row * tl.load(view + 2).to(INDEX)
    if (from_height == height) & (from_width == width):
        at_first, at = _at(view, spot, INDEX)
        resized = _tile(base + at_first, at, at_row, pixel_lives, row_lives, CHANNELS_LAST, VECTOR).to(tl.float32)
    else:
        top, bottom, down = _tap(y, from_height, height)
        left, right, along = _tap(x, from_width, width)
        at_first, at = _at(view, (first, run, top, left), INDEX)
        base += at_first
        below = (bottom - top) * tl.load(view + 3).to(INDEX)
        beside = (right - left) * tl.load(view + 4).to(INDEX)
        upper = _tile(base, at, at_row, pixel_lives, row_lives, CHANNELS_LAST, VECTOR).to(tl.float32)
        other = _tile(base, at + beside, at_row, pixel_lives, row_lives, CHANNELS_LAST, VECTOR).to(tl.float32)
        upper = (1 - along)[:, None] * upper + along[:, None] * other
        at += below
        lower = _tile(base, at, at_row, pixel_lives, row_lives, CHANNELS_LAST, VECTOR).to(tl.float32)
        other = _tile(base, at + beside, at_row, pixel_lives, row_lives, CHANNELS_LAST, VECTOR).to(tl.float32)
        lower = (1 - along)[:, None] * lower + along[:, None] * other
        resized = (1 - down)[:, None] * upper + down[:, None] * lower
    return resized


@triton.jit
def _coefficients(view, first, run, batch, column, pixel_lives, row_lives, SMALL: tl.constexpr):
    """A tile of alpha (or of its direction), (pixels, rows); zeros where it has no tensor.

    A tile of a map that is no smaller (not SMALL) spans at most two samples, ``first`` and the next: two vectors do.
    """
    address, stride = tl.load(view), tl.load(view + 1)
    base = address.to(tl.pointer_type(tl.float32)) + first * stride
    at_column, row_lives = column * tl.load(view + 2), _only_if(address != 0, row_lives)
    if SMALL:
        lives = pixel_lives[:, None] & row_lives[None, :]
        tile = tl.load(base + (run * stride)[:, None] + at_column[None, :], mask=lives, other=0.0)
    else:
        one = tl.load(base + at_column, mask=_only_if(first < batch, row_lives), other=0.0)
        two = tl.load(base + stride + at_column, mask=_only_if(first + 1 < batch, row_lives), other=0.0)
        tile = tl.where((run == 0)[:, None], one[None, :], two[None, :])
    return tile


@triton.jit
def _weight(view, TYPE, row, channel, row_lives, channel_lives, VECTOR: tl.constexpr, INDEX: tl.constexpr):
    """A tile of a projection's weight (or of its direction), (rows, channels); zeros where it has no tensor."""
    address = tl.load(view)
    at_row, at_channel = row * tl.load(view + 1).to(INDEX), channel * tl.load(view + 2).to(INDEX)
    base = address.to(tl.pointer_type(TYPE))
    return _tile(base, at_row, at_channel, _only_if(address != 0, row_lives), channel_lives, True, VECTOR)


@triton.jit
def _bias(view, TYPE: tl.constexpr, row, row_lives):
    """A stretch of a bias (or of its direction), (rows,), float32; zeros where it has no tensor."""
    address = tl.load(view)
    pointers = address.to(tl.pointer_type(TYPE)) + row * tl.load(view + 1)
    return tl.load(pointers, mask=_only_if(address != 0, row_lives), other=0.0).to(tl.float32)


@triton.jit
def _dot(left, right, sums, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """sums + left right, with operands of TYPE and float32 sums."""
    return tl.dot(left.to(TYPE), right.to(TYPE), sums, input_precision=PRECISION)


@triton.jit
def _finish(table, sample, column, square, lives, SECOND: tl.constexpr):
    """Q of a whole sample goes out, as alpha's gradient; returned is what it adds to the loss, (rows,)."""
    address = tl.load(table + SQUARES)
    pointers = address.to(tl.pointer_type(tl.float32)) + sample * tl.load(table + COLUMNS) + column
    tl.store(pointers, square, mask=_only_if(address != 0, lives))
    if SECOND:
        adds = tl.zeros_like(square)
    else:
        at = sample * tl.load(table + ALPHA + 1) + column * tl.load(table + ALPHA + 2)
        alpha = tl.load(tl.load(table + ALPHA).to(tl.pointer_type(tl.float32)) + at, mask=lives, other=0.0)
        adds = tl.where(lives, alpha * square, 0.0)
    return adds


@triton.jit(do_not_specialize=["item_count"])
def target_kernel(
    table,  # int64: see records.py
    items,  # int64 (item_count, TARGET_ITEM)
    blocks,  # int64 (row blocks, 2): pair, first row
    item_count,
    SECOND: tl.constexpr,  # Hessian-vector product instead of gradient
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    DOT_TYPE: tl.constexpr,  # of W T
    E_TYPE: tl.constexpr,  # of products with E
    PRECISION: tl.constexpr,
    S_CHANNELS_LAST: tl.constexpr,
    T_CHANNELS_LAST: tl.constexpr,
    V_CHANNELS_LAST: tl.constexpr,
    D_CHANNELS_LAST: tl.constexpr,
    S_VECTOR: tl.constexpr,  # see _tile
    T_VECTOR: tl.constexpr,
    W_VECTOR: tl.constexpr,
    INDEX: tl.constexpr,  # integer that holds every offset from a tile's first sample
    SMALL: tl.constexpr,  # some map of this launch has fewer pixels than a tile
    HOLD: tl.constexpr,  # T is held, all its channels, instead of being read again for each W in steps of STEP channels
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
):
    """dT = sum_m W^T E, or hT = sum_m W^T E' + vW^T E.

    An item is a tile of a target's pixels and channels, whose sums stay in registers while all rows of all pairs of
    that target pass by. With HOLD, a tile of W serves both of its products.
    """
    batch = tl.load(table + BATCH)
    targets, pairs = table + tl.load(table + TARGETS), table + tl.load(table + PAIRS)
    for number in range(tl.program_id(0), item_count, tl.num_programs(0)):
        item = items + number * TARGET_ITEM
        target = targets + tl.load(item) * TARGET_WORDS
        height, width = tl.load(target + HEIGHT).to(tl.int32), tl.load(target + WIDTH).to(tl.int32)
        channel_count = tl.load(target + CHANNELS).to(tl.int32)
        channel = tl.load(item + 3).to(tl.int32) + tl.arange(0, TILE_CHANNELS)
        channel_lives = channel < channel_count

        first = tl.load(item + 1)
        place = tl.load(item + 2).to(tl.int32) + tl.arange(0, PIXELS)
        run, pixel = place // (height * width), place % (height * width)
        lives = run < batch - first
        spot = (first, run, pixel // width, pixel % width)

        maps, moved = target + MAP, target + V_MAP
        if HOLD:
            t = _map(maps, T_TYPE, spot, lives, channel, channel_lives, T_CHANNELS_LAST, T_VECTOR, INDEX)
            if SECOND:
                v_t = _map(moved, T_TYPE, spot, lives, channel, channel_lives, V_CHANNELS_LAST, T_VECTOR, INDEX)

        sums = tl.zeros((PIXELS, TILE_CHANNELS), tl.float32)
        first_block = tl.load(item + 4).to(tl.int32)
        for block in range(first_block, first_block + tl.load(item + 5).to(tl.int32)):
            pair = pairs + tl.load(blocks + 2 * block) * PAIR_WORDS
            row = tl.load(blocks + 2 * block + 1).to(tl.int32) + tl.arange(0, ROWS)
            row_lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)

            d = tl.zeros((PIXELS, ROWS), tl.float32)
            v = tl.zeros((PIXELS, ROWS), tl.float32)
            if HOLD:
                w = _weight(pair + WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
                d = _dot(t, tl.trans(w), d, DOT_TYPE, PRECISION)
                if SECOND:
                    v = _dot(v_t, tl.trans(w), v, DOT_TYPE, PRECISION)
                    v_w = _weight(pair + V_WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
                    v = _dot(t, tl.trans(v_w), v, DOT_TYPE, PRECISION)
            else:
                for begin in range(0, channel_count, STEP):
                    k = begin + tl.arange(0, STEP)
                    k_lives = k < channel_count
                    t = _map(maps, T_TYPE, spot, lives, k, k_lives, T_CHANNELS_LAST, T_VECTOR, INDEX)
                    part = _weight(pair + WEIGHT, W_TYPE, row, k, row_lives, k_lives, W_VECTOR, INDEX)
                    d = _dot(t, tl.trans(part), d, DOT_TYPE, PRECISION)
                    if SECOND:
                        v_t = _map(moved, T_TYPE, spot, lives, k, k_lives, V_CHANNELS_LAST, T_VECTOR, INDEX)
                        v = _dot(v_t, tl.trans(part), v, DOT_TYPE, PRECISION)
                        part = _weight(pair + V_WEIGHT, W_TYPE, row, k, row_lives, k_lives, W_VECTOR, INDEX)
                        v = _dot(t, tl.trans(part), v, DOT_TYPE, PRECISION)

            d += _bias(pair + BIAS, B_TYPE, row, row_lives)[None, :]
            d -= _resized(pair, S_TYPE, spot, lives, height, width, row, row_lives, S_CHANNELS_LAST, S_VECTOR, INDEX)
            column = tl.load(pair + COLUMN) + row
            alpha = _coefficients(table + ALPHA, first, run, batch, column, lives, row_lives, SMALL)
            e = 2 * alpha * d
            if not HOLD:
                w = _weight(pair + WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
            if SECOND:
                v += _bias(pair + V_BIAS, B_TYPE, row, row_lives)[None, :]
                v_alpha = _coefficients(table + V_ALPHA, first, run, batch, column, lives, row_lives, SMALL)
                sums = _dot(2 * alpha * v + 2 * v_alpha * d, w, sums, E_TYPE, PRECISION)
                if not HOLD:
                    v_w = _weight(pair + V_WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
                sums = _dot(e, v_w, sums, E_TYPE, PRECISION)
            else:
                sums = _dot(e, w, sums, E_TYPE, PRECISION)

        view = target + D_MAP
        at_first, at_pixel = _at(view, spot, INDEX)
        at_channel = channel * tl.load(view + 2).to(INDEX)
        base = tl.load(view).to(tl.pointer_type(T_TYPE)) + at_first
        if D_CHANNELS_LAST:
            both = lives[:, None] & channel_lives[None, :]
            tl.store(base + at_pixel[:, None] + at_channel[None, :], sums.to(T_TYPE), mask=both)
        else:
            both = channel_lives[:, None] & lives[None, :]
            tl.store(base + at_channel[:, None] + at_pixel[None, :], tl.trans(sums.to(T_TYPE)), mask=both)


@triton.jit(do_not_specialize=["item_count"])
def projection_kernel(
    table,  # int64: see records.py
    items,  # int64 (item_count, PROJECTION_ITEM)
    weight_sums,  # float32 (items, ROWS, TILE_CHANNELS): dW of each item's samples
    bias_sums,  # float32 (items, ROWS)
    loss_sums,  # float32, one an item, of all launches together
    item_count,
    SECOND: tl.constexpr,  # Hessian-vector product instead of loss and gradient
    SUMS: tl.constexpr,  # some weight's or bias's result is wanted
    S_TYPE: tl.constexpr,
    T_TYPE: tl.constexpr,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    E_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    S_CHANNELS_LAST: tl.constexpr,
    T_CHANNELS_LAST: tl.constexpr,
    V_CHANNELS_LAST: tl.constexpr,
    S_VECTOR: tl.constexpr,
    T_VECTOR: tl.constexpr,
    W_VECTOR: tl.constexpr,
    INDEX: tl.constexpr,
    SMALL: tl.constexpr,
    HOLD: tl.constexpr,  # W is held, and each T serves both of its products
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Q, the loss, dW = sum E T^T and db = sum E; or 2 sum D V, hW = sum E' T^T + E vT^T and hb = sum E'.

    An item is a tile of a pair's rows and channels and a run of whole samples, whose pixels pass by. Q is complete at a
    sample's end and goes out there, written by this item alone; dW and db of the run are partial sums.
    """
    batch = tl.load(table + BATCH)
    targets, pairs = table + tl.load(table + TARGETS), table + tl.load(table + PAIRS)
    for number in range(tl.program_id(0), item_count, tl.num_programs(0)):
        item = items + number * PROJECTION_ITEM
        pair = pairs + tl.load(item) * PAIR_WORDS
        row = tl.load(item + 1).to(tl.int32) + tl.arange(0, ROWS)
        row_lives = row < tl.load(pair + SOURCE_CHANNELS).to(tl.int32)
        begin_sample = tl.load(item + 2)
        begin_channel = tl.load(item + 4).to(tl.int32)
        writes = begin_channel == 0  # of the items that share rows and samples, the one that writes Q
        partial = tl.load(item + 5)
        target = targets + tl.load(pair + TARGET) * TARGET_WORDS
        height, width = tl.load(target + HEIGHT).to(tl.int32), tl.load(target + WIDTH).to(tl.int32)
        pixels = height * width
        length = tl.load(item + 3).to(tl.int32) * pixels
        channel_count = tl.load(target + CHANNELS).to(tl.int32)
        channel = begin_channel + tl.arange(0, TILE_CHANNELS)
        channel_lives = channel < channel_count

        if HOLD:
            w = _weight(pair + WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
            if SECOND:
                v_w = _weight(pair + V_WEIGHT, W_TYPE, row, channel, row_lives, channel_lives, W_VECTOR, INDEX)
        bias = _bias(pair + BIAS, B_TYPE, row, row_lives)
        if SECOND:
            v_bias = _bias(pair + V_BIAS, B_TYPE, row, row_lives)
        column = tl.load(pair + COLUMN) + row

        sums = tl.zeros((ROWS, TILE_CHANNELS), tl.float32)
        bias_sum = tl.zeros((ROWS,), tl.float32)
        square = tl.zeros((ROWS,), tl.float32)  # of the sample at hand, so far
        loss = tl.zeros((ROWS,), tl.float32)
        for start in range(0, length, PIXELS):
            first = begin_sample + start // pixels  # of this tile, not of the item
            place = start % pixels + tl.arange(0, PIXELS)
            run, pixel = place // pixels, place % pixels
            lives = start + tl.arange(0, PIXELS) < length
            spot = (first, run, pixel // width, pixel % width)

            d = tl.zeros((ROWS, PIXELS), tl.float32)
            v = tl.zeros((ROWS, PIXELS), tl.float32)
            maps, moved = target + MAP, target + V_MAP
            if HOLD:
                t = _map(maps, T_TYPE, spot, lives, channel, channel_lives, T_CHANNELS_LAST, T_VECTOR, INDEX)
                d = _dot(w, tl.trans(t), d, DOT_TYPE, PRECISION)
                if SECOND:
                    v_t = _map(moved, T_TYPE, spot, lives, channel, channel_lives, V_CHANNELS_LAST, T_VECTOR, INDEX)
                    v = _dot(w, tl.trans(v_t), v, DOT_TYPE, PRECISION)
                    v = _dot(v_w, tl.trans(t), v, DOT_TYPE, PRECISION)
            else:
                for begin in range(0, channel_count, STEP):
                    k = begin + tl.arange(0, STEP)
                    k_lives = k < channel_count
                    part = _map(maps, T_TYPE, spot, lives, k, k_lives, T_CHANNELS_LAST, T_VECTOR, INDEX)
                    w = _weight(pair + WEIGHT, W_TYPE, row, k, row_lives, k_lives, W_VECTOR, INDEX)
                    d = _dot(w, tl.trans(part), d, DOT_TYPE, PRECISION)
                    if SECOND:
                        v_w = _weight(pair + V_WEIGHT, W_TYPE, row, k, row_lives, k_lives, W_VECTOR, INDEX)
                        v = _dot(v_w, tl.trans(part), v, DOT_TYPE, PRECISION)
                        part = _map(moved, T_TYPE, spot, lives, k, k_lives, V_CHANNELS_LAST, T_VECTOR, INDEX)
                        v = _dot(w, tl.trans(part), v, DOT_TYPE, PRECISION)

            s = _resized(pair, S_TYPE, spot, lives, height, width, row, row_lives, S_CHANNELS_LAST, S_VECTOR, INDEX)
            d += bias[:, None] - tl.trans(s)
            alpha = tl.trans(_coefficients(table + ALPHA, first, run, batch, column, lives, row_lives, SMALL))
            e = 2 * alpha * d
            if SUMS and not HOLD:
                t = _map(maps, T_TYPE, spot, lives, channel, channel_lives, T_CHANNELS_LAST, T_VECTOR, INDEX)
            if SECOND:
                v += v_bias[:, None]
                v_alpha = tl.trans(_coefficients(table + V_ALPHA, first, run, batch, column, lives, row_lives, SMALL))
                product = 2 * d * v
                if SUMS:
                    e_moved = tl.where(lives[None, :], 2 * alpha * v + 2 * v_alpha * d, 0.0)
                    bias_sum += tl.sum(e_moved, axis=1)
                    sums = _dot(e_moved, t, sums, E_TYPE, PRECISION)
                    if not HOLD:
                        v_t = _map(moved, T_TYPE, spot, lives, channel, channel_lives, V_CHANNELS_LAST, T_VECTOR, INDEX)
                    sums = _dot(e, v_t, sums, E_TYPE, PRECISION)
            else:
                product = d * d
                if SUMS:
                    e = tl.where(lives[None, :], e, 0.0)
                    bias_sum += tl.sum(e, axis=1)
                    sums = _dot(e, t, sums, E_TYPE, PRECISION)

            # Q: what this tile adds to each sample it touches
            end = start % pixels + PIXELS  # counted, as all else, from the first sample
            if SMALL:
                last = (tl.minimum(start + PIXELS, length) - 1) // pixels - start // pixels
                for each in range(0, last + 1):
                    square += tl.sum(tl.where((run == each)[None, :], product, 0.0), axis=1)
                    ends = (each + 1) * pixels <= end
                    loss += _finish(table, first + each, column, square, _only_if(ends & writes, row_lives), SECOND)
                    square = tl.where(ends, 0.0, square)
            else:  # at most one sample ends in a tile, the rest belongs to the next
                square += tl.sum(tl.where((run == 0)[None, :], product, 0.0), axis=1)
                ends = pixels <= end
                loss += _finish(table, first, column, square, _only_if(ends & writes, row_lives), SECOND)
                rest = tl.sum(tl.where((run == 0)[None, :], 0.0, product), axis=1)
                square = tl.where(ends, rest, square)

        if not SECOND:
            tl.store(loss_sums + tl.load(item + 6), tl.sum(loss, axis=0))
        if SUMS:
            local = tl.arange(0, ROWS)
            at = (
                partial * (ROWS * TILE_CHANNELS) + local[:, None] * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :]
            )
            tl.store(weight_sums + at, sums)
            tl.store(bias_sums + partial * ROWS + local, bias_sum)


@triton.jit(do_not_specialize=["item_count", "loss_count"])
def sum_kernel(
    table,  # int64: see records.py
    items,  # int64 (item_count, SUM_ITEM)
    weight_sums,  # float32: partial sums of all launches of projection_kernel
    bias_sums,
    loss_sums,  # float32 (loss_count,)
    loss,  # float32 scalar
    item_count,
    loss_count,
    W_TYPE: tl.constexpr,
    B_TYPE: tl.constexpr,
):
    """Adds partial sums in a fixed order: the second stage of dW and db, and of the loss."""
    pairs, targets = table + tl.load(table + PAIRS), table + tl.load(table + TARGETS)
    element = tl.arange(0, SUM_CHUNK)
    for number in range(tl.program_id(0), item_count, tl.num_programs(0)):
        item = items + number * SUM_ITEM
        pair = pairs + tl.load(item) * PAIR_WORDS
        target = targets + tl.load(pair + TARGET) * TARGET_WORDS
        channels, tile_width = tl.load(target + CHANNELS), tl.load(item + 4)
        row, channel = tl.load(item + 1) + element // tile_width, tl.load(item + 3) + element % tile_width
        lives = (row < tl.load(item + 2)) & (channel < channels)
        weight_at, bias_at = tl.load(item + 5) + element, tl.load(item + 7) + element // tile_width
        of_bias = lives & (channel == 0)
        weight = tl.zeros((SUM_CHUNK,), tl.float32)
        bias = tl.zeros((SUM_CHUNK,), tl.float32)
        for _ in range(tl.load(item + 9).to(tl.int32)):
            weight += tl.load(weight_sums + weight_at, mask=lives, other=0.0)
            bias += tl.load(bias_sums + bias_at, mask=of_bias, other=0.0)
            weight_at += tl.load(item + 6)
            bias_at += tl.load(item + 8)
        address = tl.load(pair + D_WEIGHT)
        lives = _only_if(address != 0, lives)
        tl.store(address.to(tl.pointer_type(W_TYPE)) + row * channels + channel, weight.to(W_TYPE), mask=lives)
        address = tl.load(pair + D_BIAS)
        of_bias = _only_if(address != 0, of_bias)
        tl.store(address.to(tl.pointer_type(B_TYPE)) + row, bias.to(B_TYPE), mask=of_bias)

    if (tl.program_id(0) == 0) & (loss_count > 0):
        total = tl.zeros((SUM_CHUNK,), tl.float32)
        for start in range(0, loss_count, SUM_CHUNK):
            at = start + element
            total += tl.load(loss_sums + at, mask=at < loss_count, other=0.0)
        tl.store(loss, tl.sum(total, axis=0))

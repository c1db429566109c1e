"""Where a kernel finds what in its table: one int64 vector in device memory that describes all maps and pairs.

    header | a record a target | a record a pair

Pointers are addresses, 0 where there is no tensor (a bias that is None, a direction that is zero, a result that is not
wanted); strides are in elements. A *view* is a pointer followed by its strides. The constants are offsets in words.
"""

import triton.language as tl

# header
BATCH = tl.constexpr(0)
ALPHA = tl.constexpr(1)  # view (B, columns)
V_ALPHA = tl.constexpr(4)  # view (B, columns): alpha's direction
SQUARES = tl.constexpr(7)  # pointer, dense (B, columns): alpha's gradient, or its Hessian-vector product
COLUMNS = tl.constexpr(8)
TARGETS = tl.constexpr(9)  # first word of the targets' records
PAIRS = tl.constexpr(10)
HEADER_WORDS = tl.constexpr(11)

# target
MAP = tl.constexpr(0)  # view (B, C, H, W)
V_MAP = tl.constexpr(5)  # view: its direction
D_MAP = tl.constexpr(10)  # view: its gradient, or its Hessian-vector product
CHANNELS = tl.constexpr(15)
HEIGHT = tl.constexpr(16)
WIDTH = tl.constexpr(17)
TARGET_WORDS = tl.constexpr(18)

# pair
SOURCE = tl.constexpr(0)  # view (B, C_m, H_m, W_m)
SOURCE_HEIGHT = tl.constexpr(5)
SOURCE_WIDTH = tl.constexpr(6)
SOURCE_CHANNELS = tl.constexpr(7)
WEIGHT = tl.constexpr(8)  # view (C_m, C_n)
V_WEIGHT = tl.constexpr(11)  # view
BIAS = tl.constexpr(14)  # view (C_m,)
V_BIAS = tl.constexpr(16)  # view
D_WEIGHT = tl.constexpr(18)  # pointer, dense (C_m, C_n)
D_BIAS = tl.constexpr(19)  # pointer, dense (C_m,)
COLUMN = tl.constexpr(20)  # the pair's first column of alpha
TARGET = tl.constexpr(21)  # index of its target
PAIR_WORDS = tl.constexpr(22)

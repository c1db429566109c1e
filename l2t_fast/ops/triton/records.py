"""Where a kernel finds what in its table: one int64 vector in device memory that describes all maps, pairs and parts.

    header | a record a target | a record a pair | a record a part | a record a group

Pointers are addresses, 0 where there is no tensor (a bias that is None, a direction that is zero, a result that is not
wanted); strides are in elements. A *view* is a pointer followed by its strides. The constants are offsets in words.
"""

import triton.language as tl

# header
ALPHA = tl.constexpr(0)  # view (B, columns)
V_ALPHA = tl.constexpr(3)  # view (B, columns): alpha's direction
SQUARES = tl.constexpr(6)  # pointer, dense (B, columns): alpha's gradient, or its Hessian-vector product
COLUMNS = tl.constexpr(7)
LOSS = tl.constexpr(8)  # pointer, float32 scalar
LOSS_SUMS = tl.constexpr(9)  # pointer: one an item of the kernels that make Q, of all launches together
LOSS_COUNT = tl.constexpr(10)
HEADER_WORDS = tl.constexpr(11)

# target
MAP = tl.constexpr(0)  # view (B, C, H, W)
V_MAP = tl.constexpr(5)  # view: its direction
D_MAP = tl.constexpr(10)  # view: its gradient, or its Hessian-vector product
CHANNELS = tl.constexpr(15)
HEIGHT = tl.constexpr(16)
WIDTH = tl.constexpr(17)
ROWS = tl.constexpr(18)  # source channels of all its pairs
PACKED = tl.constexpr(19)  # pointer (rows, stride): all weights of its pairs, zeros beyond the channels
V_PACKED = tl.constexpr(20)  # pointer: their directions
PACKED_STRIDE = tl.constexpr(21)
TURNED = tl.constexpr(22)  # pointer (channels, stride): the same, turned, zeros beyond the rows
V_TURNED = tl.constexpr(23)
TURNED_STRIDE = tl.constexpr(24)
V_ROWS = tl.constexpr(25)  # rows, or 0 where no weight has a direction
WEIGHT_SUMS = tl.constexpr(26)  # pointer (splits, rows, channels), float32
SPLITS = tl.constexpr(27)
SQUARE_SUMS = tl.constexpr(28)  # pointer (tiles of columns, slots, rows), float32: Q by sample
SLOTS = tl.constexpr(29)  # samples that a tile touches, at most
FACTOR_SUMS = tl.constexpr(30)  # pointer (tiles, rows), float32: of E
TILES = tl.constexpr(31)  # of columns, of all parts together; in the Gram form shares of the samples
TILE_COLUMNS = tl.constexpr(32)
# in the Gram form; all float32
MAP_SUMS = tl.constexpr(33)  # pointer (B, channels): T summed over pixels
V_MAP_SUMS = tl.constexpr(34)  # pointer: its direction
SOURCE_SUMS = tl.constexpr(35)  # pointer (B, rows, 2): of S~ and of S~^2
PRODUCTS = tl.constexpr(36)  # pointer (B, channels + rows, channels): T T^T, S~ T^T
V_PRODUCTS = tl.constexpr(37)  # pointer: T vT^T, S~ vT^T
FACTOR = tl.constexpr(38)  # pointer (B, channels, channels): W^T 2 alpha W, the factor of T, which in K2 is that of vT
V_FACTOR = tl.constexpr(39)  # pointer: its direction, the factor of T in K2
CONSTANT = tl.constexpr(40)  # pointer (B, channels): W^T 2 alpha b; in K2 its direction
PAIRS = tl.constexpr(41)  # all of it, and where the first one is; sorted by size, those of the target's first
FIRST_PAIR = tl.constexpr(42)
OWN_PAIRS = tl.constexpr(43)  # with sources of the target's size, whose maps dT takes
FIRST_GROUP = tl.constexpr(44)  # where it is; groups lie together
GROUPS = tl.constexpr(45)  # whose GROWN dT takes
TARGET_WORDS = tl.constexpr(46)

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
FIRST_ROW = tl.constexpr(21)  # among the rows of its target
NEXT = tl.constexpr(22)  # in the Gram form: where the pair after it is
GROUP = tl.constexpr(23)  # in the Gram form: where the group of a smaller source is
PAIR_WORDS = tl.constexpr(24)

# part: some samples of a target, whose E is in memory at one time
FIRST_SAMPLE = tl.constexpr(0)
PART_COLUMNS = tl.constexpr(1)  # pixels of all its samples
FIRST_TILE = tl.constexpr(2)  # among its target's tiles of columns
E = tl.constexpr(3)  # pointer (rows, stride), zeros beyond the columns: the factor of W and T, which in K2 is E'
V_E = tl.constexpr(4)  # pointer: the factor of their directions, E; in K2 alone
E_STRIDE = tl.constexpr(5)
LATER = tl.constexpr(6)  # whether there are parts before it, whose sums dW adds to
PART_WORDS = tl.constexpr(7)

# group, in the Gram form: a target's pairs with smaller sources of one size
GROUP_HEIGHT = tl.constexpr(0)
GROUP_WIDTH = tl.constexpr(1)
GROUP_PAIRS = tl.constexpr(2)
GROUP_FIRST = tl.constexpr(3)  # where its first pair is
SHRUNK = tl.constexpr(4)  # pointer (B, pixels, channels): the adjoint of the resize, of T
V_SHRUNK = tl.constexpr(5)  # pointer: of its direction
GROWN = tl.constexpr(6)  # pointer (B, pixels, channels): W^T 2 alpha S; in K2 its direction
GROUP_WORDS = tl.constexpr(7)

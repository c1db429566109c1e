"""The layers that `benchmarks.convolutions` times."""

from benchmarks.convolutions import layers


def test_every_convolution_of_the_cifar_target():
    found = layers("cifar")
    assert found == {
        (32, 3, 64, 32): 1,
        (32, 64, 128, 16): 1,
        (32, 128, 256, 8): 1,
        (32, 256, 256, 8): 1,
        (32, 256, 512, 4): 1,
        (32, 512, 512, 4): 1,
        (32, 512, 512, 2): 2,
    }

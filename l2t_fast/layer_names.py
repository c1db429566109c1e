"""What feature maps of several sources are called, in pairs, files and figures."""

SEPARATOR = "/"  # no network has it in the name of a layer


def source_layer(source: str, layer: str) -> str:
    """What a layer of one among several sources is called."""
    return f"{source}{SEPARATOR}{layer}"


def split_source_layer(name: str) -> tuple[str, str]:
    """(source, layer) of a feature map's name; the source is "" where there is only one."""
    source, separator, layer = name.partition(SEPARATOR)
    return (source, layer) if separator else ("", name)

"""Results of one run given to another with other settings, as tests do to spare computing."""

from tfrobust.report.results import Results, write_arrays, write_frame


def reseal(source, target, place):
    """Make the results in folder `place` of `target`, copied from `source`, those of `target`."""
    copied = Results(target.folder, source.seal)
    for path in sorted((target.folder / place).iterdir()):
        name = str(path.relative_to(target.folder))
        if path.suffix == ".json":
            path.write_text(path.read_text().replace(source.seal, target.seal))
        elif path.suffix == ".parquet":
            write_frame(path, copied.read_frame(name), target.seal)
        elif path.suffix == ".npz":
            write_arrays(path, copied.read_arrays(name), target.seal)

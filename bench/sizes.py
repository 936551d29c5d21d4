"""The first contact by what an image is made of: few large files or many small ones, 100 MB and 700 MB."""

import first_contact
import image

# Before compression: such files have about these sizes after it.
FEW, MANY = 2.2, 3.9


def _group(doc, what, wanted, mb, factor):
    class Kind:
        """As a module of a group."""
        __doc__ = doc

        @staticmethod
        def measure(room, rounds, tiny, say):
            """The rows of the first contact."""
            source = image.of_files(room, "image", wanted, (mb / 20 if tiny else mb) * factor)
            return first_contact.measure_image(room, source, f", {what}", 1 if tiny else rounds, say)
    return Kind


def _few(size):
    return size >= image.LARGE


def _many(size):
    return size < image.SMALL


GROUPS = {
    f"{name}_{mb}": _group(f"First contact with about {mb} MB of {what}.", what, wanted, mb, factor)
    for mb in (100, 700)
    for name, what, wanted, factor in (("few", "few files", _few, FEW), ("many", "many files", _many, MANY))
}

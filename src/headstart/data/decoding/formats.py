"""Which formats of images are read here, and what a file is that is none of them."""

from __future__ import annotations

from functools import cache

from PIL import features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
ACCEPTED = ", ".join((*FORMATS, "NPY"))
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "HEIF": "heif"}  # what Pillow was built with, or was not
_BRANDS = {"avif": "AVIF", "avis": "AVIF", "heic": "HEIF", "heix": "HEIF", "mif1": "HEIF", "msf1": "HEIF"}
_BRANDS |= dict.fromkeys(("isom", "iso2", "mp41", "mp42", "avc1", "M4V", "qt", "3gp4", "3gp5"), "MP4, a video")
_MAGIC = {
    b"%PDF": "PDF", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop", b"DDS ": "DDS", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"\0\0\x01\0": "ICO",
    b"\x89HDF": "HDF5", b"SIMPLE  =": "FITS",
}  # fmt: skip
_JPEG_2000 = dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG2000")
_DAMAGED = _JPEG_2000 | {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
    b"II*": "TIFF",
    b"MM\0*": "TIFF",
}


@cache
def list_formats() -> tuple[str, ...]:
    """The formats of ``FORMATS`` that Pillow decodes here, pillow-heif's where that is installed."""
    there = {*features.get_supported_modules(), *features.get_supported_codecs()}
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        there.add("heif")
    except ImportError:
        pass
    return tuple(name for name in FORMATS if _OPTIONAL.get(name) in (None, *there))


def describe_content(content: bytes) -> str:
    """A phrase on bytes that no decoder takes."""
    accepted = "accepted are " + ", ".join((*list_formats(), "NPY"))
    head = content[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in head:
        return f"it is a web page (HTML), not an image; {accepted}"
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace").strip()
        name = _BRANDS.get(brand, brand)
        if name == "HEIF" and name not in list_formats():
            return "its format is HEIF (HEIC), which is read with pillow-heif: pip install pillow-heif"
        return f"the {name} data are damaged" if name in list_formats() else f"its format is {name}; {accepted}"
    for magic, name in _MAGIC.items():
        if content.startswith(magic):
            return f"its format is {name}; {accepted}"
    if content.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not an image; fetch the files themselves with git lfs pull"
    if b"<svg" in head:
        return f"its format is SVG; {accepted}"
    for magic, name in _DAMAGED.items():
        if content.startswith(magic):
            return f"the {name} data are damaged"
    return f"it is not an image of a known format; {accepted}"

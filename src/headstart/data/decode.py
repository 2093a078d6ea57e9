"""The old name of ``headstart.data.decoding.decode``, for scripts that import it."""

from headstart.data.decoding.decode import UnreadableImage as UnreadableImage
from headstart.data.decoding.decode import check_image as check_image
from headstart.data.decoding.decode import decode_image as decode_image
from headstart.data.decoding.decode import read_bytes as read_bytes
from headstart.data.decoding.decode import read_file as read_file
from headstart.data.decoding.decode import read_image as read_image

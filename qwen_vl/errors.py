"""What can go wrong between text, images and ids.

ToolkitError
└── QwenVLError
    ├── RankFileError             a tiktoken rank file that cannot be used
    ├── FixedVocabularyError      somebody tried to add a token
    ├── UnknownTokenError         an id without a token, or a token without an id
    ├── UnsupportedElementError   a list element that no text can be written for
    ├── MalformedTextError        tags that do not close, control tokens where none may stand
    │   ├── ImagePathTooLongError     more bytes than an image span has places
    │   ├── TokenInImagePathError     a special token between <img> and </img>
    │   └── UndecodableImagePathError the bytes of an image span are not UTF-8
    ├── MalformedBoxError         a <box> that is not four integers
    ├── UnknownChatFormatError    neither chatml nor raw
    ├── ChatFormatError           chat() with a model that was not trained for it
    ├── StopWordsError            stop sequences that stop nothing
    ├── ConversationError         a training conversation without turns, or with an unknown role
    ├── ModelError                a folder or call that the model cannot be used with
    │   ├── UnsupportedArchitectureError  config.json describes another model
    │   ├── ConfigError                   a config.json that contradicts itself
    │   ├── WeightNamesError              weights missing, unknown, or of another shape
    │   ├── UnsupportedQuantizationError  quantized, but not as 2, 4 or 8 bit GPTQ
    │   ├── UnknownDtypeError             a dtype the model does not run in
    │   ├── UnknownCompatError            neither "default" nor "2023"
    │   ├── KernelError                   integer kernels that cannot be had, or are not saved
    │   ├── InputError                    arguments of a forward call that exclude each other
    │   ├── ImageBlockError               image blocks in the ids do not fit the images
    │   ├── ImageShapeError               pixels that make no square grid of patches
    │   └── CacheError                    a cache that belongs to another batch
    └── ImageError                a picture that cannot be had
        ├── ImageNotAllowedError      a path or address typed into text, or an address at all
        ├── ImageNotFoundError        no such file
        ├── ImageFetchError           an address that does not give the picture
        └── NotAnImageError           the bytes are no picture, or too large a one

Many also derive from the builtin that the 2023 code raised in the same place, so that callers who
catch `ValueError` or `KeyError` there keep working.
"""

from __future__ import annotations

from model_store.errors import ToolkitError


class QwenVLError(ToolkitError):
    """Root of everything this room raises."""

    def __str__(self) -> str:
        # KeyError would show its repr, and UnicodeDecodeError a byte position
        return str(self.args[0]) if self.args else ""


class RankFileError(QwenVLError, ValueError):
    """A tiktoken rank file that cannot be used."""

    hint = "Fetch the file again; the published one has 151643 lines of `base64 rank`."


class FixedVocabularyError(QwenVLError, ValueError):
    """The vocabulary is fixed by the rank file; nothing can be added."""

    hint = "Use one of the 205 reserved tokens <|extra_0|> … <|extra_204|>."


class UnknownTokenError(QwenVLError, KeyError, OverflowError, ValueError):
    """An id that has no token."""

    hint = "Ids from the rank count + 217 upwards are padding rows of the embedding."

    def __init__(self, token_id: int) -> None:
        super().__init__(f"Invalid token for decoding: {token_id}")
        self.token_id = token_id


class UnsupportedElementError(QwenVLError, ValueError, TypeError, IndexError):
    """A list element that no text can be written for."""

    hint = 'Use {"image": …}, {"text": …} or {"ref": …, "box": [[x1, y1, x2, y2]]}.'


class MalformedTextError(QwenVLError, ValueError):
    """Tags that do not close, or control tokens where none may stand."""

    hint = "Close every <img>, <ref>, <box> and <quad>, and leave control tokens out."


class ImagePathTooLongError(MalformedTextError):
    """More bytes between <img> and </img> than an image span has places."""

    hint = "Pass the image itself, a Path or bytes: then no path is written into the text."


class TokenInImagePathError(MalformedTextError, TypeError):
    """A special token stands between <img> and </img>."""


class UndecodableImagePathError(MalformedTextError, UnicodeDecodeError):
    """The bytes of an image span are not UTF-8."""

    def __init__(self, error: UnicodeDecodeError) -> None:
        UnicodeDecodeError.__init__(
            self, error.encoding, error.object, error.start, error.end, error.reason
        )

    def __str__(self) -> str:
        return f"the path in an image span is not UTF-8: {self.reason} at byte {self.start}"


class MalformedBoxError(QwenVLError, ValueError, AssertionError):
    """A <box> that is not four integers."""

    hint = "A box reads (x1,y1),(x2,y2), in thousandths of the image."


class UnknownChatFormatError(QwenVLError, NotImplementedError):
    """Neither chatml nor raw."""


class ChatFormatError(QwenVLError, AssertionError):
    """chat() was asked for something that only another model or call can do."""

    hint = "Use a Chat checkpoint, or model.generate() with a base one."


class StopWordsError(QwenVLError, ValueError, AssertionError):
    """Stop sequences that are no list of non-empty lists of ids."""

    hint = "Pass lists of ids: [tokenizer.encode(word) for word in words]."


class ConversationError(QwenVLError, KeyError, IndexError):
    """A training conversation without turns, or with an unknown role."""

    hint = "Turns alternate between `user` and `assistant`; the system text is added for you."


class ImageError(QwenVLError):
    """A picture that cannot be had."""


class ImageNotAllowedError(ImageError):
    """Text or an address would make us open something nobody handed over."""

    hint = 'Pass images as elements: [{"image": path}, {"text": "…"}].'


class ImageNotFoundError(ImageError, FileNotFoundError):
    """No such file."""


class ImageFetchError(ImageError):
    """An address that does not give the picture, within its limits."""

    hint = "Download the picture and name the file."


class NotAnImageError(ImageError, ValueError):
    """The bytes are no picture of a kind we read, or too large a one."""

    hint = "PNG, JPEG, WebP, BMP, GIF and TIFF are read."


class ModelError(QwenVLError):
    """A folder or a call that the model cannot be used with."""


class UnsupportedArchitectureError(ModelError):
    """config.json describes another model; nothing of its weights was read."""

    hint = "Name a Qwen-VL folder: model_type qwen with a visual section, or qwen_vl."


class ConfigError(ModelError, ValueError):
    """A config.json that is missing, unreadable, or contradicts itself."""

    hint = "Fetch config.json again from the repository the weights came from."


class WeightNamesError(ModelError):
    """The checkpoint's tensors are not the model's: missing, unknown, or of another shape."""

    hint = "Fetch the folder again, config.json and every shard of one revision."


class UnsupportedQuantizationError(ModelError):
    """A quantized checkpoint of a kind that QuantizedLinear does not read."""

    hint = "GPTQ with 2, 4 or 8 bits, format gptq or gptq_v2, is read."


class UnknownDtypeError(ModelError, ValueError):
    """A dtype that the model does not run in."""

    hint = "Use float32, bfloat16 or float16."


class UnknownCompatError(ModelError, ValueError):
    """A compat mode that does not exist."""

    hint = 'Use "default", or "2023" for the behaviour of the original code.'

    def __init__(self, mode: str, *, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown compat mode {mode!r}, not one of {', '.join(known)}")


class KernelError(ModelError):
    """Integer kernels that were asked for and cannot be had."""

    hint = 'Load with kernels="reference", which is exact and slow.'


class InputError(ModelError, ValueError):
    """Arguments of a forward call that exclude each other."""


class ImageBlockError(ModelError, ValueError):
    """Image blocks in the ids that do not fit the images."""

    hint = "Make the ids and pixel_values with the processor of the same folder."


class ImageShapeError(ModelError, ValueError):
    """Pixels that do not make a square grid of whole patches."""

    hint = "Make pixel_values with the image processor."


class CacheError(ModelError, ValueError):
    """A cache that was started with another batch."""

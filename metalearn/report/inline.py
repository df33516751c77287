"""SVG files as parts of one page: no outside reference, no script, no name that another picture has too."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from metalearn.registry import UserError

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
PNG = "data:image/png;base64,"  # pixels that the file itself has: no outside reference
LEFT_OUT = ("metadata", "script", "foreignObject", "title")


def inline(text: str, name: str, label: str, variables: Mapping[str, str] | None = None) -> str:
    """The picture as an <svg> element whose ids all begin with `name`.

    `label` is what a screen reader says. With `variables` (colour -> CSS variable), colours follow the page's
    light or dark look and the white background goes. Raises UserError where `text` is no SVG.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{name}: is no readable SVG: {error}") from None
    ElementTree.register_namespace("", SVG)
    _strip(root)
    for element in root.iter():
        _rename(element, name)
    for style in root.iter(f"{{{SVG}}}style"):
        # a style element speaks to the whole page unless it is nested in its own picture's name
        style.text = f"#{name}{{{style.text or ''}}}"
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"id": name, "role": "img", "aria-label": label}
    return _recoloured(ElementTree.tostring(root, encoding="unicode"), variables or {})


def _strip(parent: ElementTree.Element) -> None:
    for child in list(parent):
        if str(child.tag).rpartition("}")[2] in LEFT_OUT:
            parent.remove(child)
        else:
            _strip(child)


def _rename(element: ElementTree.Element, name: str) -> None:
    for key, value in list(element.attrib.items()):
        plain = key.rpartition("}")[2]
        within = value.startswith(("#", PNG))
        if plain.startswith("on") or (plain == "href" and not within):
            del element.attrib[key]
        elif plain == "id":
            element.attrib[key] = f"{name}-{value}"
        elif plain == "href":
            del element.attrib[key]
            element.attrib["href"] = value if value.startswith(PNG) else f"#{name}-{value[1:]}"
        else:
            element.attrib[key] = re.sub(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)", rf"url(#{name}-\1)", value)


def _recoloured(text: str, variables: Mapping[str, str]) -> str:
    if not variables:
        return text
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = text.replace("fill: #ffffff", "fill: none")
    return re.sub("|".join(variables), lambda found: f"var({variables[found[0]]}, {found[0]})", text)

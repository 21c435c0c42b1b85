"""Pages that the project writes, read as a browser would."""

import html.parser


class Page(html.parser.HTMLParser):
    """Every start tag with its attributes, and all text, of a page whose tags must be closed in order."""

    VOID = ("meta", "img", "line", "path", "circle", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

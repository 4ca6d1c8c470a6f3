"""A page as a browser would take it."""

import html.parser


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: its elements, its text and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.handlers, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.loads += [
            v for name, v in attrs if name in ("src", "href", "srcset", "data", "action")
        ]

    def handle_data(self, data):
        self.text += data

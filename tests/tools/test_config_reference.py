"""docs/config.md is what configs/base.py and architectures.py say today, and nothing of it is left out."""

from ml_collections import ConfigDict

from configs import base
from tools.config_reference import PAGE, SOURCES, reference


def leaves(section, prefix):
    for name in section:
        value = section[name]
        if isinstance(value, ConfigDict) and len(value):
            yield from leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def test_the_page_of_the_config_is_up_to_date():
    page = reference(*(source.read_text() for source in SOURCES))
    assert PAGE.read_text() == page, "run python -m tools.config_reference"


def test_every_field_of_the_config_is_on_its_page():
    page = PAGE.read_text()
    for field in leaves(base.get_config(), "config"):
        above = [".".join(field.split(".")[: i + 1]) for i in range(1, field.count("."))]
        last = field.rpartition(".")[2]
        of_a_call = any(f"| `{name}` | `" in page for name in above) and f"| `{last}` |" in page
        whole = any(f"| `{name}` | `ConfigDict(" in page for name in above)
        assert f"| `{field}` |" in page or of_a_call or whole, field


def test_comments_beside_and_above_a_field_become_its_meaning():
    source = (
        'def get_config():\n    """All."""\n    # Two lines\n    # above.\n    config.a = 1\n'
        '    config.b = train(x="y")  # beside\n    return config\n\n\n'
        'def train(*, x):\n    """Trains."""\n    section.steps = 0\n    return section\n'
    )
    rows = [line for line in reference(source).splitlines() if line.startswith("| `")]
    assert rows == ["| `config.a` | `1` | Two lines above. |", "| `config.b` | `train(x='y')` | beside |",
                    "| `steps` | `0` |  |"]  # fmt: skip

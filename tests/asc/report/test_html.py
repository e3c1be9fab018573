import pytest

from asc.report import html


def test_numbers() -> None:
    assert (html.nats(1.23456), html.nats(-0.5), html.nats(None)) == (
        "1.235",
        "\u22120.500",
        "\u2013",
    )
    assert (html.percent(0.6543), html.percent(None)) == ("65.4\u202f%", "\u2013")
    assert html.signed(0.25, "nats") == "+0.250" and html.signed(-0.25, "nats") == "\u22120.250"
    assert html.signed(0.025, "percent") == "+2.5\u202f%"
    assert html.span((0.5, 0.75), "percent") == "50.0 to 75.0\u202f%"
    assert html.span((-0.5, 0.75), "nats") == "\u22120.500 to 0.750"
    assert html.span(None, "nats") == ""
    assert html.count(62_474) == "62\u202f474"


def test_templates_miss_nothing_silently() -> None:
    with pytest.raises(Exception, match="'title' is undefined"):
        html.render("report.html")

from tuner.data.findings import MAX_FATAL_LISTED, MAX_WARNINGS_LISTED, Findings


def test_a_line_names_file_row_and_weight() -> None:
    findings = Findings()
    findings.add("数据.jsonl", 17, ("JSON", "not valid JSON"))
    findings.add("数据.jsonl", None, ("empty file", "the file has no rows"), fatal=False)
    assert [str(finding) for finding in findings.all()] == [
        "数据.jsonl:17: not valid JSON",
        "数据.jsonl: warning: the file has no rows",
    ]
    assert findings.counts() == (1, 1)


def test_many_of_one_kind_do_not_hide_another() -> None:
    findings = Findings()
    for row in range(1, MAX_FATAL_LISTED + 8):
        findings.add("a.jsonl", row, ("neg empty", "'neg' is empty"))
        findings.add("a.jsonl", row, ("repeated query", "repeated"), fatal=False)
    findings.add("a.jsonl", 999, ("pos empty", "'pos' is empty"))
    lines = [str(finding) for finding in findings.all()]
    assert len(lines) == MAX_FATAL_LISTED + MAX_WARNINGS_LISTED + 1 + 2
    assert "a.jsonl:999: 'pos' is empty" in lines
    assert "a.jsonl: 7 more of this kind (neg empty)" in lines
    assert findings.counts() == (MAX_FATAL_LISTED + 8, MAX_FATAL_LISTED + 7)

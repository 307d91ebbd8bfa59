"""Evidence as one HTML page for people: no script, nothing from elsewhere, made to be printed.

Whatever comes from a job or a log is escaped by the template engine.
"""

from typing import TYPE_CHECKING

from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.node.evidence import Evidence

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
@page { size: A4; margin: 18mm 16mm; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1b1f24; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 2px solid #d5dbe1; break-after: avoid; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.lead { color: #49525c; margin-bottom: 1rem; }
.status { border-left: 6px solid #1a7f43; background: #eaf6ee; padding: .6rem 1rem; }
.status.bad { border-color: #b3261e; background: #fdecea; }
.status ul { margin: .3rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .6rem 0;
  font-size: .87em; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem;
  border-bottom: 1px solid #dfe4e9; overflow-wrap: anywhere; }
thead { display: table-header-group; }
thead th { background: #f1f4f7; color: #2b333b; }
tr { break-inside: avoid; }
tbody th { width: 11em; font-weight: 600; background: #fafbfc; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.note { color: #49525c; font-size: .87em; break-after: avoid; }
@media print { body { font-size: 10pt; margin: 0; padding: 0; max-width: none; }
  h2 { margin-top: 1.3rem; } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evidence: {{ e.job }}</title><style>{{ style | safe }}</style></head><body>
<h1>Evidence about the run of {{ e.job }}</h1>
<p class="lead">Written by {{ e.node }} on {{ e.made }}, from the record that all nodes signed and
from this node's audit log.</p>
{% if e.verified %}
<div class="status"><p><strong>Verified.</strong> The signatures of all nodes, the ledger and the
audit log of {{ e.node }} hold.</p></div>
{% else %}
<div class="status bad"><p><strong>Not verified.</strong> Do not rely on this evidence before the
following is explained:</p>
<ul>{% for fault in e.faults %}<li>{{ fault }}</li>{% endfor %}</ul></div>
{% endif %}

<h2>1. The run</h2>
<table><tbody>
<tr><th>Job, digest</th><td>{{ e.job }}<br><code>{{ e.job_digest }}</code></td></tr>
<tr><th>Contract</th><td><code>{{ e.contract }}</code>, version {{ e.contract_version }}</td></tr>
<tr><th>Session</th><td><code>{{ e.session }}</code></td></tr>
<tr><th>Statement of results</th><td><code>{{ e.statement }}</code></td></tr>
<tr><th>Model</th><td>{{ e.model }}</td></tr>
<tr><th>First weights</th><td>{{ e.first_weights }}</td></tr>
</tbody></table>

<h2>2. Who would have to collude to learn what</h2>
{% for line in e.trust %}<p>{{ line }}</p>{% endfor %}
<table><thead><tr><th style="width:19%">Party</th><th style="width:21%">Roles</th>
<th>Fingerprint of its card</th><th style="width:20%">Card is valid</th></tr></thead><tbody>
{% for one in e.parties %}<tr><td>{{ one.name }}</td><td>{{ one.roles }}</td>
<td><code>{{ one.fingerprint }}</code></td><td>{{ one.issued[:10] }} to {{ one.expires[:10] }}</td>
</tr>{% endfor %}</tbody></table>

<h2>3. Data and purposes</h2>
<p class="note">As the signed job states them.</p>
<table><tbody>
<tr><th>Purposes</th><td>{{ e.data.purposes | join(", ") or "not stated" }}</td></tr>
<tr><th>In words</th><td>{{ e.data.description or "not stated" }}</td></tr>
<tr><th>Categories of data</th><td>{{ e.data.categories | join(", ") or "not stated" }}</td></tr>
{% for column, kinds in e.data.by_column.items() %}
<tr><th>Column {{ column }}</th><td>{{ kinds | join(", ") }}</td></tr>{% endfor %}
<tr><th>Legal basis</th><td>{{ e.data.legal_basis or "not stated" }}</td></tr>
<tr><th>Valid until</th><td>{{ e.data.valid_until or "not stated" }}</td></tr>
<tr><th>Columns</th><td>{{ e.data.columns | join(", ") }}</td></tr>
<tr><th>Rows</th><td>{% for name, count in e.data.rows.items() %}{{ name }}: {{ count }}
{%- if not loop.last %}, {% endif %}{% endfor %}</td></tr>
<tr><th>Preparation</th><td>{{ e.data.preparation }}</td></tr>
</tbody></table>

<h2>4. What was revealed, and to whom</h2>
<p class="note">Every value that left the masked domain; the ledger on which all nodes agree. Values
are not part of this evidence.</p>
<table><thead><tr><th style="width:27%">What</th><th style="width:13%">Numbers</th>
<th style="width:23%">To</th><th>Listed by</th><th style="width:15%">Times (steps)</th></tr></thead>
<tbody>{% for one in e.revealed %}<tr><td>{{ one.outputs | join(", ") }}</td>
<td>{{ one.numbers }}</td><td>{{ one.to | join(", ") }}</td><td><code>{{ one.clause }}</code></td>
<td>{{ one.times }} ({{ one.first }}{% if one.last != one.first %} to {{ one.last }}{% endif %})
</td></tr>{% endfor %}</tbody></table>
{% if e.served %}<p>The model stays in shares. What leaves later is not part of this evidence; the
signed job allows this, and nothing else:</p>
<table><tbody>
<tr><th style="width:27%">May ask the model</th>
<td>{{ e.served.clients | join(", ") or "nobody" }}</td></tr>
{% if e.served.clients %}<tr><th>Rows a day, each</th><td>{{ e.served.rows_a_day }}</td></tr>
<tr><th>Answers</th><td>{{ e.served.answer }}{% if e.served.decimals is not none %}, rounded to
{{ e.served.decimals }} decimals{% elif e.served.answer != "class" %}, unrounded{% endif %}
</td></tr>{% endif %}
<tr><th>May measure it</th><td>{{ e.served.validators | join(", ") or "nobody" }}</td></tr>
{% if e.served.drift %}<tr><th>Drift</th><td>Evaluators learn how many of each
{{ e.served.drift.every_rows }} rows that are asked fall into which bin, with noise of
ε = {{ e.served.drift.epsilon }} for a row; {{ e.served.drift.to | join(", ") }} keep a record
of how far that is from the {{ e.served.drift.baseline }}
{%- if e.served.drift.baseline == "training rows" %}, whose counts left in this run
with the same noise{% endif %}.</td></tr>{% endif %}
</tbody></table>{% endif %}
{% if e.privacy %}<p>{{ e.privacy.promise }} That means: {{ e.privacy.meaning }}.
{{ e.privacy.against }}</p>
<table><thead><tr><th style="width:20%">Revealed</th><th style="width:10%">ε</th>
<th style="width:18%">Paid by</th><th>How</th></tr></thead><tbody>
{% for one in e.privacy.costs %}<tr><td>{{ one.what }}</td><td>{{ one.epsilon }}</td>
<td>{{ one.paid_by }}</td><td>{{ one.how }}</td></tr>{% endfor %}
</tbody></table>{% else %}<p>No differential privacy was promised.</p>{% endif %}
<table><thead><tr><th style="width:19%">Sealed by</th><th style="width:34%">File</th>
<th>SHA-256</th></tr></thead><tbody>
{% for one in e.sealed %}<tr><td>{{ one.sender }}</td><td>{{ one.path }}</td>
<td><code>{{ one.sha256 }}</code></td></tr>{% endfor %}</tbody></table>

<h2>5. Contract and signatures</h2>
<p>Each node signed the contract before anything was shared, and the statement of results after the
run. The signatures are in <code>run.record</code>; <code>mpc-train evidence verify</code> checks
them with the cards.</p>
<table><thead><tr><th style="width:19%">Signed by</th>
<th>SHA-256 of its signature of the results</th></tr></thead><tbody>
{% for one in e.signatures %}<tr><td>{{ one.name }}</td>
<td><code>{{ one.sha256 }}</code></td></tr>{% endfor %}</tbody></table>

<h2>6. Algorithms and key sizes</h2>
<table><thead><tr><th style="width:18%">Stage</th><th>What</th><th style="width:33%">Algorithm</th>
<th style="width:16%">Bits of keys</th></tr></thead><tbody>
{% for one in e.algorithms %}<tr><td>{{ one.stage }}</td><td>{{ one.what }}</td>
<td>{{ one.algorithm }}</td><td>{{ one.bits }}</td></tr>{% endfor %}</tbody></table>

<h2>7. Audit log of {{ e.node }}</h2>
<table><tbody>
<tr><th>Result</th><td>{% if e.log.verified %}verified{% else %}<strong>not verified</strong>
{% endif %}: {{ e.log.entries }} entries, origin {{ e.log.origin or "unknown" }}</td></tr>
<tr><th>Root</th><td><code>{{ e.log.root }}</code></td></tr>
{% for line in e.log.checked %}<tr><th>Agrees</th><td>{{ line }}</td></tr>{% endfor %}
{% for line in e.log.faults %}<tr><th>Fault</th><td>{{ line }}</td></tr>{% endfor %}
<tr><th>Entries of the run</th><td>{% for kind, count in e.log.counts.items() %}{{ kind }}
{{ count }}{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}</td></tr>
</tbody></table>
{% if e.log.of_run %}<table><thead><tr><th style="width:9%">Entry</th><th style="width:23%">Time
(UTC)</th><th style="width:20%">Kind</th><th>Fields</th></tr></thead><tbody>
{% for one in e.log.of_run %}<tr><td>{{ one.number }}</td>
<td>{{ one.time[:19] | replace("T", " ") }}</td>
<td>{{ one.kind }}</td><td>{% for key, value in one.fields.items() %}{{ key }}:
<code>{{ value }}</code>{% if not loop.last %}<br>{% endif %}{% endfor %}</td></tr>
{% endfor %}</tbody></table>{% endif %}

<h2>8. Versions</h2>
<p class="note">Of the program that wrote this evidence. All its components are in
<code>bom.cdx.json</code> (CycloneDX 1.6).</p>
<table><tbody>{% for name, value in e.versions.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td>
</tr>{% endfor %}</tbody></table>

<h2>9. What this may help to review</h2>
<p class="note">Articles of the GDPR (Regulation (EU) 2016/679) and sections of the HIPAA security
rule (45 CFR Part 164, Subpart C) that a part of this evidence speaks to. Support for a review, not
a claim of compliance.</p>
<table><thead><tr><th style="width:21%">Part</th><th style="width:20%">GDPR</th>
<th style="width:24%">HIPAA</th><th>How</th></tr></thead><tbody>
{% for one in e.speaks_to %}<tr><td>{{ one.part }}</td>
<td>{% for a in one.gdpr %}{{ a }}<br>{% endfor %}</td>
<td>{% for a in one.hipaa %}{{ a }}<br>{% endfor %}</td>
<td>{{ one.how }}</td></tr>{% endfor %}</tbody></table>

<h2>10. Limits</h2>
{% for line in e.limits %}<p>{{ line }}</p>{% endfor %}
</body></html>
"""


def page(evidence: "Evidence") -> bytes:
    """The page. Raises ConfigError if the template engine is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(
            "evidence needs jinja2, which is not installed: python -m pip install "
            "'mpc-train[evidence]'"
        ) from error
    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return engine.from_string(PAGE).render(e=evidence, style=STYLE, policy=POLICY).encode()


def pdf(html: bytes) -> bytes:
    """The page as PDF. Raises ConfigError if WeasyPrint, or a library of it, is not there."""
    try:
        import weasyprint
    except (ImportError, OSError) as error:
        raise ConfigError(
            "--pdf needs WeasyPrint, which is not installed: python -m pip install "
            "'mpc-train[evidence]', or print evidence.html from a browser"
        ) from error

    def nothing(url: str, *_: object, **__: object) -> dict[str, object]:
        raise ValueError(f"the page asks for {url}")

    document = weasyprint.HTML(string=html.decode(), url_fetcher=nothing)
    made: bytes = document.write_pdf()
    return made

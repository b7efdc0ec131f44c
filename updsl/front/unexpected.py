"""A token that does not fit → what is wrong in the user's terms, what would fit, and the likely fix."""

from __future__ import annotations

from collections.abc import Collection

from updsl.core.diagnostic import Diagnostic, nearest
from updsl.core.source import Source, Span
from updsl.front.layout import DECLARATIONS
from updsl.front.lex import RESERVED, Token

BLANK = frozenset(("NEWLINE", "INDENT", "DEDENT", "$END"))
WORDS = frozenset(w.upper() for w in RESERVED)
OPERATORS = frozenset("PLUS MINUS STAR SLASH AT CARET ORDER EQUALITY AND OR TRANSPOSE".split())
OPERANDS = frozenset("NAME NUMBER TEXT INF TRUE FALSE LPAR REPEAT IF CLIP NOT CORE RULE MINUS".split())
ENDS_OPERAND = frozenset("NAME NUMBER TEXT INF TRUE FALSE RPAR RSQB TRANSPOSE".split())
BEGINNINGS = ("clip", "state", "let", "every", "reset", "skip", "watch", "match", "return", "input", "repeat", "rule")
"""Words that begin something, and are followed by a name."""
STATEMENTS = frozenset("INPUT LET STATE EVERY RESET SKIP WATCH MATCH RETURN".split())
SCOPES = "a scope is `element`, `row`, `column`, `block(k)`, `tensor`, `group` or `all`"

SHOWN = {
    "EQUAL": "`=`", "ASSIGN": "`←`", "ARROW": "`→`", "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "COMMA": "`,`", "COLON": "`:`", "SEMI": "`;`",
    "NAME": "a name", "NUMBER": "a number", "TEXT": "a text", "NEWLINE": "the end of the line", "INDENT": "an indented block", "DEDENT": "the end of the block",
    "$END": "the end of the file", "ORDER": "a comparison", "DOC": "documentation",
}  # fmt: skip

MISSING = {
    "THEN": ("this `if` has no `then`", "write `if c then a else b`"),
    "ELSE": ("this `if` has no `else`", "write `if c then a else b`"),
    "TIMES": ("this `repeat` has no `times`", "write `repeat n times:` before a block, `repeat n times (…)` in an expression"),
    "GIVES": ("this example does not say what it gives", "write `example: [1, 2] gives [2, 4]`"),
    "IN": ("this `for` does not say what its name ranges over", "write `for k in [1e-3, 1e3]`, `for q orthogonal`, `for q permutation` or `for g any`"),
    "WHEN": ("this `skip` has no condition", "write `skip when c`"),
}
"""A word that would fit where something is missing: what to say."""

BEGINS_NO_STATEMENT = {
    "IF": "`if` gives a value: write `x = if c then a else b`, or route tensors by `match:`",
    "ELSE": "`if` gives a value: write `x = if c then a else b`",
    "FOR": "write `repeat n times:`",
    **dict.fromkeys(("USE", "RULE", "FN", "LAW", "EXAMPLE"), "begin it where the rule begins: it stands outside of every rule"),
}
"""A word that could be meant to begin a statement: what to write instead."""

FOREIGN_WORDS = {
    "while": "a rule has no loops without bounds; write `repeat n times:`",
    "def": "write `fn f(x) = …` for a function, `rule r(…):` for a rule",
    "function": "write `fn f(x) = …`",
    "elif": "write `else if`",
    "import": "write `use NAME`, for a file beside this one; the library needs no `use`",
    "const": "write `x = …`",
    "var": "write `let x = …`",
    "lambda": "write `fn f(x) = …` above the rule",
    "print": "write `watch label = …`",
    "assert": "write `law NAME: …` below the rule",
}


def unexpected(source: Source, tokens: list[Token], i: int, fits: Collection[str]) -> Diagnostic:
    """The diagnostic for tokens[i], where one of the terminals `fits` would fit."""
    return Reader(source, tokens, i, frozenset(fits)).diagnostic()


class Reader:
    def __init__(self, source: Source, tokens: list[Token], i: int, fits: frozenset[str]):
        self.source, self.fits, self.token = source, fits, tokens[i]
        first = next((k + 1 for k in range(i - 1, -1, -1) if tokens[k].type in BLANK), 0)
        start = i + (tokens[i].type == "INDENT")
        end = next((k for k in range(start, len(tokens)) if tokens[k].type in BLANK), len(tokens) - 1)
        self.line, self.rest = tokens[first:i], tokens[start:end]
        """What stands before it on its line, and what from there on."""
        self.types = [t.type for t in self.line]
        self.before = self.line[-1] if self.line else None
        self.first_line = tokens[: next((k for k, t in enumerate(tokens) if t.type in BLANK), len(tokens))]

    def written(self, first: Token, last: Token | None = None) -> str:
        return self.source.text[first.start : (last or first).end]

    @property
    def shown(self) -> str:
        written = self.written(self.token)
        return f"`{written}`" if written and self.token.type not in BLANK else SHOWN[self.token.type]

    def make(self, code: str, message: str, help_: str | None = None, *, at: Token | None = None, note: str | None = None) -> Diagnostic:
        at = at or self.token
        return Diagnostic(code, message, Span(self.source, at.start, at.end), notes=(note,) if note else (), help=help_)

    def diagnostic(self) -> Diagnostic:
        questions = (
            self.block,
            self.line_end,
            self.arm,
            self.sign,
            self.outside,
            self.statement,
            self.looseness,
            self.word,
            self.missing_word,
            self.name,
            self.list,
            self.operand,
        )
        for ask in questions:
            found = ask()
            if found is not None:
                return found
        return self.make("unexpected", f"{self.shown} does not fit here", note=self.what_fits())

    def what_fits(self) -> str | None:
        """A list of what would fit, kinds of things before single ones."""
        rest, found = set(self.fits), []
        if "PER" in self.types[-2:]:
            rest.discard("LPAR")
        for needed, name, kinds in (
            ({"NAME", "NUMBER", "LPAR"}, "an expression", OPERANDS),
            ({"PLUS", "STAR"}, "an operator", OPERATORS),
            ({"RETURN"}, "a statement", STATEMENTS | {"NAME", "REPEAT"}),
            ({"USE"}, "a declaration", DECLARATIONS),
        ):
            if needed <= rest:
                found.append(name)
                rest -= kinds
        found += sorted(SHOWN.get(t) or f"`{t.lower()}`" for t in rest if t in SHOWN or t in WORDS)
        return f"here fits {', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else f"here fits {found[0]}" if found else None

    # --- blocks and lines ---

    def block(self) -> Diagnostic | None:
        if self.token.type == "INDENT":
            operator = bool(self.rest) and self.rest[0].type in OPERATORS
            help_ = "put brackets around an expression of several lines" if operator else "begin it where the line before begins; a block stands after `:`"
            return self.make("indentation", "this line is indented, but the one before it opens no block", help_)
        if self.fits == {"INDENT"}:
            return self.make("missing-block", "the block after `:` is missing", "write its lines below, indented by four spaces")
        if self.types[-1:] == ["COLON"] and (self.fits == {"NEWLINE"} or self.types[0] in ("RULE", "EVERY", "REPEAT", "MATCH")):
            header = self.written(self.line[0], self.before)
            help_ = "break the line after `:` and indent what follows"
            if self.types[0] == "RULE":
                help_ += ", or write `=` in place of `:` before an expression"
            return self.make("missing-block", f"what stands after `{header}` begins on a line of its own", help_)
        if self.token.type == "DEDENT" and "RETURN" in self.fits:
            return self.make("missing-block", "this block holds no statement", "write `return …`")
        if self.fits == {"DEDENT"}:
            return self.make("else-not-last", "`else` is the last arm of a `match`", "move this arm above it, or delete one `else`")
        return None

    def line_end(self) -> Diagnostic | None:
        """The line ends too early."""
        if self.token.type != "NEWLINE" or self.before is None:
            return None
        if {"EQUAL", "ASSIGN"} <= self.fits:
            return self.expression_alone()
        missing = self.missing_word()
        if missing:
            return missing
        if "COLON" in self.fits and self.types[0] in ("RULE", "EVERY", "REPEAT", "MATCH", "LAW", "EXAMPLE", "ELSE"):
            help_ = "write `rule r:` before a block, `rule r = …` before an expression" if self.types[0] == "RULE" else "add `:`"
            return self.make("unfinished-line", "`:` is missing", help_)
        if "ORDER" in self.fits and "EQUALITY" not in self.fits:
            return self.make("unfinished-line", "this `clip` has no bound", "write `clip norm > 1`: what is measured, a comparison, and its bound")
        if self.before.type == "ARROW":
            return self.make("unfinished-line", "a stage is missing after the arrow", "let the next line begin with `→` to go on there, or delete this one")
        after = self.written(self.before)
        if self.before.type == "PER":
            return self.make("unfinished-line", "a scope is missing after `per`", "write a scope, such as `per row`", note=SCOPES)
        if "NUMBER" in self.fits:
            help_ = "write it on this line, or put brackets around the lines" if self.before.type in OPERATORS else None
            return self.make("unfinished-line", f"an expression is missing after `{after}`", help_)
        if "NAME" in self.fits:
            return self.make("unfinished-line", f"a name is missing after `{after}`")
        if "EQUAL" in self.fits:
            return self.make("unfinished-line", "`=` and a value are missing", f"write `{self.written(self.line[0], self.before)} = …`")
        return None

    # --- statements and declarations ---

    def outside(self) -> Diagnostic | None:
        """What stands outside of every rule."""
        help_ = "write `rule NAME:` above, and indent the block by four spaces"
        if self.fits == {"$END"}:
            whole = Token("", "", self.first_line[0].start, self.first_line[-1].end)
            if self.token.type in DECLARATIONS:
                return self.make("bare-pipeline", "a bare pipeline stands alone in its file", "give it a name: `rule NAME = …`", at=whole)
            help_ = "let the line begin with `→` to go on with the pipeline above, or write `rule NAME = …`"
            return self.make("bare-pipeline", "a file holds one bare pipeline", help_)
        if self.types == ["NAME"] and self.token.type in ("EQUAL", "ASSIGN") and "ARROW" in self.fits and "NEWLINE" in self.fits:
            name = self.line[0].text
            glued = next((w for w in ("rule", "fn", "law", "use") if name.startswith(w) and name != w), None)
            if glued:
                return self.make("statement-outside", f"`{name}` is one name", f"write `{glued} {name.removeprefix(glued)} …`", at=self.line[0])
            return self.make("statement-outside", "a statement stands in the block of a rule", help_, at=self.line[0])
        if self.line or "USE" not in self.fits:
            return None
        if self.token.type in STATEMENTS:
            return self.make("statement-outside", f"{self.shown} begins a statement, which stands in the block of a rule", help_)
        if "NAME" not in self.fits and self.token.type in OPERANDS:
            return self.make("bare-pipeline", "a bare pipeline stands alone in its file", "give it a name: `rule NAME = …`")
        return None

    def statement(self) -> Diagnostic | None:
        """What begins like no statement."""
        if self.before and self.types[0] == "NAME" and len(self.line) == 1 and self.line[0].text in FOREIGN_WORDS:
            word = self.line[0].text
            return self.make("foreign-word", f"`{word}` is not a word of the language", FOREIGN_WORDS[word], at=self.line[0])
        if {"EQUAL", "ASSIGN"} <= self.fits and self.types == ["NAME"]:
            return self.expression_alone()
        if self.line:
            return None
        if "RETURN" in self.fits:
            help_ = BEGINS_NO_STATEMENT.get(self.token.type)
            if help_:
                return self.make("unexpected", f"{self.shown} begins no statement", help_)
            return self.expression_alone() if self.token.type in OPERANDS else None
        if self.token.type in STATEMENTS and "ELSE" in self.fits:
            message = f"{self.shown} begins a statement; the arms of a `match` are `condition: …`"
            return self.make("unexpected", message, "indent the statements of an arm below it")
        return None

    def expression_alone(self) -> Diagnostic:
        whole = [*self.line, *self.rest]
        if len(whole) > 1 and whole[1].type == "NAME" and (word := self.misspelled(whole[0])) is not None:
            return word
        text = self.written(whole[0], whole[-1])
        shown = text if len(text) <= 60 and "\n" not in text else "…"
        place = Token("", "", whole[0].start, whole[-1].end)
        return self.make("idle-expression", "an expression alone is no statement", f"write `return {shown}` to give it out, `x = {shown}` to name it", at=place)

    def misspelled(self, token: Token) -> Diagnostic | None:
        """A name before another, that is nearly a word of the language."""
        name = self.written(token)
        found = nearest(name, BEGINNINGS) if token.type == "NAME" else []
        return self.make("unknown-name", f"unknown name or stage `{name}`", f"did you mean `{found[0]}`?", at=token) if found else None

    # --- signs and words ---

    def sign(self) -> Diagnostic | None:
        """A sign that means something else elsewhere."""
        match self.token.type:
            case "ASSIGN" if "ORDER" in self.fits:
                return self.arrow()
            case "EQUAL" if "EQUALITY" in self.fits and self.types != ["NAME"]:
                return self.make("equal-or-compare", "`=` gives a name its value", "write `==` to compare")
            case "EQUALITY" if "EQUAL" in self.fits:
                return self.make("equal-or-compare", f"{self.shown} compares", "write `=` to give a name its value")
            case "SEMI":
                return self.make("unexpected", "a statement ends with its line, without `;`", "put each statement on a line of its own")
            case "LSQB" if "NUMBER" in self.fits:
                return self.make("unexpected", "`[` begins a list, which stands only in examples, and in bounds after `in`", "write `(` for brackets")
            case "LSQB" if self.before and self.before.type in ENDS_OPERAND and "PLUS" in self.fits:
                return self.make("unexpected", "a tensor has no indices", "name the cells by a scope: `norm(g) per row`")
            case "COLON" if "PLUS" in self.fits:
                return self.make("unexpected", "`:` opens a block, or gives an arm of a `match`", "delete it; a value is given by `=`")
            case "COMMA" if "PLUS" in self.fits and "NEWLINE" in self.fits:
                return self.make(
                    "unexpected", "`,` stands between arguments, in brackets", "one expression has one value; write another statement for the next"
                )
            case kind if kind in STATEMENTS | DECLARATIONS and "NEWLINE" in self.fits and self.before:
                return self.make("unexpected", "a statement ends with its line", f"begin a new line before {self.shown}")
            case "DOC":
                return self.make("documentation", "documentation stands first in the block of a rule", "move it there; a comment begins with `#`")
            case _:
                return None

    def arrow(self) -> Diagnostic | None:
        negative = len(self.rest) > 1 and self.rest[1].type == "NUMBER" and self.rest[1].start == self.token.end
        if self.written(self.token) == "<-" and (negative or self.types != ["NAME"]):
            left = self.written(self.before) if self.before and self.before.type in ("NAME", "NUMBER") else "x"
            right = self.written(self.rest[1]) if len(self.rest) > 1 else "1"
            return self.make("arrow-or-less", "`<-` is always the arrow of `m ← …`", f"write `{left} < -{right}` to compare with a negative number")
        if self.types != ["NAME"]:
            return self.make("unexpected", f"{self.shown} gives a state its new value, in a statement of its own", "write `m ← …` on a line of its own")
        return None

    def arm(self) -> Diagnostic | None:
        """A statement in the place of an arm."""
        if self.token.type not in ("EQUAL", "ASSIGN") or self.types != ["NAME"] or not {"COLON", "ARROW"} <= self.fits or "NEWLINE" in self.fits:
            return None
        help_ = "move the statement above the `match:`, or into the block of an arm"
        return self.make("unexpected", "a `match` holds arms, `condition: …`, and this is a statement", help_, at=self.before)

    def looseness(self) -> Diagnostic | None:
        """What brackets would make fit."""
        kind = self.token.type
        if kind == "PER" and self.types[:1] == ["STATE"] and "AS" in self.types:
            return self.make("unexpected", "`per` stands before `as`", "write `state m = 0 per row as float32`")
        if kind in ("IF", "CLIP", "NOT") and {"LPAR", "NAME"} <= self.fits and self.before:
            form = {"IF": "(if c then a else b)", "CLIP": "(clip m > c)", "NOT": "(not c)"}[kind]
            return self.make("brackets-needed", f"{self.shown} binds looser than `{self.written(self.before)}`", f"put it in brackets: `{form}`")
        if "PER" in self.types and "ARROW" in self.fits and "PLUS" not in self.fits:
            if kind == "PER":
                return self.make("brackets-needed", "one expression takes one `per`", "put brackets around the inner one, `(x per A) per B`, or delete one")
            if kind in OPERATORS:
                help_ = f"put brackets around the inner one: `(x per S) {self.written(self.token)} …`"
                return self.make("brackets-needed", "`per` ends its expression: it covers all of it", help_)
        if "CLIP" in self.types and kind == "ORDER":
            return self.make("unexpected", "a `clip` has one bound", "write one comparison; `clamp(x, lo, hi)` has two bounds")
        if "CLIP" in self.types and kind in ("EQUALITY", "AND", "OR") and "ARROW" in self.fits:
            return self.make("brackets-needed", f"{self.shown} binds looser than `clip`", "put it, or the `clip`, in brackets")
        return self.clip() if "ORDER" in self.fits and "EQUALITY" not in self.fits and "CLIP" in self.types else None

    def clip(self) -> Diagnostic | None:
        if self.token.type in OPERANDS | {"RPAR"}:
            return None
        help_ = "write `clip norm > 1`; around anything looser than a sum go brackets"
        return self.make("unexpected", f"{self.shown} does not fit in the measure of a `clip`", help_)

    def word(self) -> Diagnostic | None:
        """A reserved word where a name or a value fits."""
        if self.token.type not in WORDS or "NAME" not in self.fits:
            return None
        word, after = self.token.text, self.written(self.before) if self.before else ""
        other = f"`{word}` is a reserved word; another name would be `{word}_`"
        if "NUMBER" in self.fits:
            message = f"an expression is missing between `{after}` and `{word}`" if after else f"`{word}` begins no expression"
            return self.make("unexpected", message, note=other)
        if after == "per":
            return self.name()
        return self.make("reserved-word", f"`{word}` is a reserved word, and cannot be a name", f"choose another name, such as `{word}_`")

    def missing_word(self) -> Diagnostic | None:
        """A word that ought to stand here."""
        kind = self.token.type
        code = "unfinished-line" if kind == "NEWLINE" else "unexpected"
        goes_on = kind in OPERANDS and "PLUS" in self.fits
        if "THEN" in self.fits and kind in OPERANDS and all(t.type != "THEN" for t in self.rest):
            return self.make(code, *MISSING["THEN"])
        for word, (message, help_) in MISSING.items():
            if word in self.fits and (not goes_on or (word == "TIMES" and kind == "LPAR")) and (word != "WHEN" or self.types == ["SKIP"]):
                return self.make(code, message, help_)
        if self.types == ["FN", "NAME"]:
            return self.make("unexpected", "a function has parameters in brackets", f"write `fn {self.line[1].text}(x) = …`")
        if "COLON" in self.fits and self.types[:1] in (["LAW"], ["EXAMPLE"]) and len(self.line) < 3:
            return self.make("unexpected", f"`:` is missing before {self.shown}", "write `law NAME: claim` or `example: stream gives stream`")
        return None

    def name(self) -> Diagnostic | None:
        """A name, or the `=` after one, ought to stand here."""
        if self.before is None and self.token.type in ("EQUAL", "ASSIGN"):
            return self.make("unexpected", f"a name is missing before {self.shown}")
        if self.before is None or self.token.type in BLANK:
            return None
        if self.types[0] == "RULE" and {"COLON", "EQUAL"} <= self.fits:
            return self.make("unexpected", f"`:` or `=` is missing before {self.shown}", "write `rule r:` before a block, `rule r = …` before an expression")
        if self.token.type in ("EQUAL", "ASSIGN") and self.before.type in WORDS and "NAME" in self.fits:
            word = self.written(self.before)
            return self.make("reserved-word", f"`{word}` is a reserved word, and cannot be a name", f"choose another name, such as `{word}_`", at=self.before)
        between = f"between `{self.written(self.before)}` and {self.shown}"
        if self.before.type == "PER" and "NAME" in self.fits:
            return self.make("unexpected", f"a scope is missing {between}", note=SCOPES)
        if self.before.type == "USE" and self.token.type == "TEXT":
            return self.make(
                "unexpected", "`use` takes names of files beside this one, without quotes", "write `use other` for the file other.upd in this folder"
            )
        if "NAME" in self.fits and "NUMBER" not in self.fits:
            return self.make("unexpected", f"a name is missing {between}")
        if self.fits <= {"EQUAL", "ABOUT"}:
            return self.make("unexpected", f"`=` is missing {between}", f"write `{self.written(self.line[0], self.before)} = …`")
        return None

    # --- lists and operands ---

    def list(self) -> Diagnostic | None:
        kind = self.token.type
        if kind == "COMMA" and "CLIP" in self.types and self.types[self.types.index("CLIP") + 1 :][:1] == ["LPAR"]:
            message = "`clip` is no function: it compares a measure with a bound"
            return self.make("unexpected", message, "write `clip norm > 1`, or `clamp(x, lo, hi)` for a function")
        if kind == "RSQB" and "COMMA" in self.fits and "IN" in self.types:
            return self.make("unexpected", "an interval has two ends", "write `in [lo, hi]`; an end may be `inf`")
        if kind in ("NAME", "NUMBER") and "COMMA" in self.fits and "PLUS" not in self.fits and self.before and self.before.type != "COMMA":
            left, right = self.written(self.before), self.written(self.token)
            return self.make("unexpected", f"`,` is missing between `{left}` and `{right}`", f"write `{left}, {right}`")
        return None

    def operand(self) -> Diagnostic | None:
        """An operator without an operand, or operands without an operator."""
        kind, before = self.token.type, self.before
        if {"NAME", "NUMBER"} <= self.fits and kind not in OPERANDS and self.written(self.token) and kind not in BLANK:
            where = f"between `{self.written(before)}` and {self.shown}" if before else f"before {self.shown}"
            drop = f"`{self.written(before)}`" if before and kind in ("RPAR", "RSQB") else "one of the two"
            help_ = f"write a value before {self.shown}, or delete {drop}" if before else "a pipeline begins with a stage: `norm → ema`"
            return self.make("unexpected", f"an expression is missing {where}", help_)
        if "PLUS" in self.fits and kind in OPERANDS and before and before.type in ENDS_OPERAND:
            left, right = self.written(before), self.written(self.token)
            if left in FOREIGN_WORDS:
                return self.make("foreign-word", f"`{left}` is not a word of the language", FOREIGN_WORDS[left], at=before)
            if (word := self.misspelled(before)) is not None:
                return word
            if kind == "IF":
                return self.make("unexpected", f"the condition of an `if` comes first, and `{left}` stands before it", f"write `if … then {left} else …`")
            pipeline = f", or `{left} → {right}` for a pipeline" if before.type in ("NAME", "RPAR") and kind in ("NAME", "CLIP", "IF", "REPEAT") else ""
            return self.make("unexpected", f"an operator is missing between `{left}` and `{right}`", f"write `{left}*{right}`{pipeline}")
        return None

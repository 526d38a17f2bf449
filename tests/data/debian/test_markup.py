"""Manual pages, pod, Info files and plain text: sentences without their markup."""

from topklm.data.debian.markup import info_paragraphs, man_paragraphs, pod_paragraphs, text_paragraphs

MAN = r""".\" a comment
.TH LS 1 "May 2024"
.SH NAME
ls \- list directory contents
.SH DESCRIPTION
.PP
List \fIinformation\fR about the
.BR FILE s
\(lqby default\(rq and\ so on.
.TP
\fB\-a\fR, \fB\-\-all\fR
do not ignore entries with a dot
.br
.IP \(bu 2
an item
.nf
code that is left out
.fi
after the code\*(C`x\*(C'
.de XX
of a macro
..
.SH AUTHOR
Somebody.
"""


def test_a_manual_page():
    assert man_paragraphs(MAN) == [
        "ls - list directory contents",
        'List information about the FILEs "by default" and so on.',
        "do not ignore entries with a dot",
        "an item",
        'after the code"x"',
        "Somebody.",
    ]


def test_a_page_in_mdoc_gives_nothing():
    assert man_paragraphs(".Dd May 1\n.Sh NAME\ntext\n") == []


POD = """=head1 NAME

perlx - a page with C<code> and B<<< bold I<inside> >>>

    verbatim, which goes

=over 4

=item thing

A link L<perlfunc/print>, one with text L<the text|http://x>, an E<gt>X<index> and
a second line.

=begin html

<p>not this</p>

=end html

The end.

=for Pod::Functions what an index says

After what is for an index alone.

=cut

code();

=head2 A heading

Pod again.

=cut

more_code();
"""


def test_pod():
    assert pod_paragraphs(POD) == [
        "perlx - a page with code and bold inside",
        "A link print in perlfunc, one with text the text, an > and a second line.",
        "The end.",
        "After what is for an index alone.",
        "Pod again.",
    ]


INFO = """This is x.info, produced by makeinfo.

\x1f
File: x.info,  Node: Top,  Next: Uses,  Up: (dir)

1 A heading
***********

The first paragraph, see *note Uses: Uses of it. for more
of it, and *note Uses::.

     an example

* Menu:

* Uses::   what it is for

\x1f
File: x.info,  Node: Index,  Prev: Uses,  Up: Top

* word:   Uses.  (line 5)
"""


def test_info():
    assert info_paragraphs(INFO) == ["The first paragraph, see Uses. for more of it, and Uses.", "an example"]


TEXT = """Title
=====

A paragraph over
two lines.

   An indented paragraph
   of text.

  * An item that goes on
    here.

        int code = 1;

a   table   of columns
1   2       3
"""


def test_text():
    assert text_paragraphs(TEXT) == [
        "A paragraph over two lines.",
        "An indented paragraph of text.",
        "An item that goes on here.",
    ]

//! A template's source with what makes minijinja do as Jinja does put around some of its expressions, and bounds around those
//! that make values grow.
//!
//! Only the parser knows where expressions begin and end, so its tree says where to insert; the text is otherwise the author's.
use super::{ATTRIBUTE, BOUNDED, ITERATED, TEXT};
use minijinja::machinery::ast::{BinOpKind, Call, CallArg, Expr, Macro, Spanned, Stmt};
use minijinja::machinery::{Token, WhitespaceConfig, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Something to insert: at which byte, whether it closes what an earlier one opens there, and the length of its expression.
type Insertion = (usize, bool, usize, String);

/// What is put around the expressions of a template.
#[derive(Default)]
struct Around {
    insertions: Vec<Insertion>,
    longest_raw: usize,
}

/// The source of a template with filters around: what loops go over, the parts of `~`, and whatever may grow; and the length of
/// the longest text that is written as it stands.
pub fn instrumented(source: &str) -> Result<(String, usize), Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    check_depth(source, whitespace)?;
    let tree = parse(source, "chat", SyntaxConfig, whitespace)?;
    let mut around = Around::default();
    around.statement(&tree);
    // at one place: what closes before what opens, an inner expression closes first and opens last
    around
        .insertions
        .sort_by_key(|(at, closes, length, _)| (*at, !closes, if *closes { *length } else { usize::MAX - length }));
    let (mut out, mut copied) = (String::with_capacity(2 * source.len()), 0);
    for (at, _, _, text) in &around.insertions {
        out.push_str(&source[copied..*at]);
        out.push_str(text);
        copied = *at;
    }
    out.push_str(&source[copied..]);
    Ok((out, around.longest_raw))
}

/// Most tokens of one expression or statement, and branches of all conditions; published templates have a tenth of either.
const MOST: [usize; 2] = [1000, 500];

/// Refuses a source whose expressions are so long that what goes over their tree may use up the stack: the parser itself bounds
/// parentheses and blocks, and no chains.
fn check_depth(source: &str, whitespace: WhitespaceConfig) -> Result<(), Error> {
    let (mut tokens, mut branches) = (0, 0);
    for token in tokenize(source, false, SyntaxConfig, whitespace) {
        match token?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tokens = 0,
            token => {
                tokens += 1;
                branches += usize::from(matches!(token, Token::Ident("elif")));
            }
        }
        for (found, most, what) in [(tokens, MOST[0], "tokens in an expression"), (branches, MOST[1], "`elif`")] {
            if found > most {
                return Err(Error::new(ErrorKind::SyntaxError, format!("more {what} than are taken: at most {most}")));
            }
        }
    }
    Ok(())
}

/// Where an expression begins: the parser's spans of what follows a value (a filter, a call) begin behind it. Parentheses in front
/// of the value may be left out, since one more behind them is as good as one more before.
fn start(of: &Expr<'_>) -> u32 {
    let own = of.span().start_offset;
    let first = match of {
        Expr::Slice(of) => start(&of.expr),
        Expr::BinOp(of) => start(&of.left),
        Expr::Compare(of) => start(&of.expr),
        Expr::IfExpr(of) => start(&of.true_expr),
        Expr::Filter(of) => of.expr.as_ref().map_or(own, start),
        Expr::Test(of) => start(&of.expr),
        Expr::GetAttr(of) => start(&of.expr),
        Expr::GetItem(of) => start(&of.expr),
        Expr::Call(of) => start(&of.expr),
        Expr::Var(_) | Expr::Const(_) | Expr::UnaryOp(_) | Expr::List(_) | Expr::Map(_) => own,
    };
    own.min(first)
}

impl Around {
    fn filter(&mut self, of: &Expr<'_>, filter: &str) {
        let (start, end) = (start(of) as usize, of.span().end_offset as usize);
        self.insertions.push((start, false, end - start, "((".to_owned()));
        self.insertions.push((end, true, end - start, format!(")|{filter})")));
    }

    fn statements(&mut self, of: &[Stmt<'_>]) {
        of.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, of: &Stmt<'_>) {
        match of {
            Stmt::Template(of) => self.statements(&of.children),
            Stmt::EmitExpr(of) => self.expression(&of.expr),
            Stmt::EmitRaw(of) => self.longest_raw = self.longest_raw.max(of.raw.len()),
            Stmt::ForLoop(of) => {
                // Jinja raises where None is gone over
                self.expression(&of.iter);
                self.filter(&of.iter, ITERATED);
                of.filter_expr.iter().for_each(|condition| self.expression(condition));
                self.statements(&of.body);
                self.statements(&of.else_body);
            }
            Stmt::IfCond(of) => {
                self.expression(&of.expr);
                self.statements(&of.true_body);
                self.statements(&of.false_body);
            }
            Stmt::WithBlock(of) => {
                of.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.statements(&of.body);
            }
            Stmt::Set(of) => {
                self.expression(&of.expr);
                if matches!(of.target, Expr::GetAttr(_)) {
                    self.filter(&of.expr, ATTRIBUTE);
                }
            }
            Stmt::SetBlock(of) => {
                of.filter.iter().for_each(|filter| self.arguments_of(filter));
                self.statements(&of.body);
            }
            Stmt::AutoEscape(of) => self.statements(&of.body),
            Stmt::FilterBlock(of) => {
                self.arguments_of(&of.filter);
                self.statements(&of.body);
            }
            Stmt::Macro(of) => self.macro_body(of),
            Stmt::CallBlock(of) => {
                self.arguments(&of.call.args);
                self.macro_body(&of.macro_decl);
            }
            Stmt::Do(of) => self.arguments(&of.call.args),
            _ => {}
        }
    }

    fn macro_body(&mut self, of: &Spanned<Macro<'_>>) {
        of.defaults.iter().for_each(|default| self.expression(default));
        self.statements(&of.body);
    }

    /// The arguments of a filter that a block goes through; it has no expression of its own.
    fn arguments_of(&mut self, filter: &Expr<'_>) {
        if let Expr::Filter(of) = filter {
            self.arguments(&of.args);
        }
    }

    fn arguments(&mut self, of: &[CallArg<'_>]) {
        for argument in of {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => {
                    self.expression(value);
                }
            }
        }
    }

    fn call(&mut self, of: &Spanned<Call<'_>>) {
        self.expression(&of.expr);
        self.arguments(&of.args);
    }

    fn expression(&mut self, of: &Expr<'_>) {
        match of {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|part| self.expression(part));
                self.filter(of, BOUNDED);
            }
            Expr::UnaryOp(of) => self.expression(&of.expr),
            Expr::BinOp(operation) => {
                self.expression(&operation.left);
                self.expression(&operation.right);
                match operation.op {
                    BinOpKind::Concat => {
                        self.filter(&operation.left, TEXT);
                        self.filter(&operation.right, TEXT);
                        self.filter(of, BOUNDED);
                    }
                    BinOpKind::Add | BinOpKind::Mul => self.filter(of, BOUNDED),
                    _ => {}
                }
            }
            Expr::Compare(of) => {
                self.expression(&of.expr);
                of.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(of) => {
                self.expression(&of.test_expr);
                self.expression(&of.true_expr);
                of.false_expr.iter().for_each(|value| self.expression(value));
            }
            Expr::Filter(filter) => {
                filter.expr.iter().for_each(|value| self.expression(value));
                self.arguments(&filter.args);
                if filter.expr.is_some() {
                    self.filter(of, BOUNDED);
                }
            }
            Expr::Test(of) => {
                self.expression(&of.expr);
                self.arguments(&of.args);
            }
            Expr::GetAttr(of) => self.expression(&of.expr),
            Expr::GetItem(of) => {
                self.expression(&of.expr);
                self.expression(&of.subscript_expr);
            }
            Expr::Call(call) => {
                self.call(call);
                // what stands for itself in these is known to the compiler
                if !matches!(&call.expr, Expr::Var(of) if ["loop", "super", "caller"].contains(&of.id)) {
                    self.filter(of, BOUNDED);
                }
            }
            Expr::List(list) => {
                list.items.iter().for_each(|item| self.expression(item));
                self.filter(of, BOUNDED);
            }
            Expr::Map(map) => {
                map.keys.iter().chain(&map.values).for_each(|item| self.expression(item));
                self.filter(of, BOUNDED);
            }
        }
    }
}

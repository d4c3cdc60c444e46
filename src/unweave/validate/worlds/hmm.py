"""Hidden Markov languages: tokens whose hidden states, and best possible prediction, are known.

    T[v, i, j] = P(emit v and go to j | in i)        b_0 = the stationary distribution
    b_{t+1} = b_t T[x_t] / (b_t T[x_t] 1)            belief, by the forward algorithm
    P(x_t = v | x_<t) = b_t T[v] 1                   the Bayes-optimal predictor

A network that predicts well must hold the belief: Shai et al. 2024 find it, linearly, in the
residual stream of transformers. Rows begin with a start token, after which the belief is b_0.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.errors import UserError
from unweave.validate.worlds.features import DATA, WORLD, seeded


class HiddenRows(NamedTuple):
    """Text of a hidden Markov language, with what was hidden."""

    tokens: Int[Tensor, "rows pos"]
    """Token ids; the first of each row is the start token."""
    states: Int[Tensor, "rows pos"]
    """The state that will emit the next token; at position 0, the first one."""
    beliefs: Float[Tensor, "rows pos states"]
    """What can be known of that state from the tokens up to and including this one."""


class HiddenMarkov:
    """A stationary process that emits one token with every step."""

    def __init__(self, T: Float[Tensor, "tokens states states"], *, name: str) -> None:
        """`T` as in the module.

        Raises:
            UserError: what leaves a state does not add up to one.
        """
        T = T.double()
        leaving = T.sum((0, 2))
        if bool((T < 0).any()) or not torch.allclose(leaving, torch.ones_like(leaving), atol=1e-6):
            raise UserError(
                f"The process {name} is no process: the probabilities of what a state emits and"
                " where it goes must not be negative and must sum to one for every state"
            )
        self.T, self.name = T / leaving[:, None], name
        self.start = _stationary(self.T.sum(0))
        """Stationary distribution over states."""

    @property
    def n_states(self) -> int:
        """Hidden states."""
        return self.T.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens that are emitted; the start token is one more, and comes last."""
        return self.T.shape[0]

    def draw(self, rows: int, positions: int, *, seed: int) -> HiddenRows:
        """Rows of a data seed: the start token and `positions - 1` emitted ones."""
        generator = seeded(DATA, seed)
        state = torch.multinomial(self.start, rows, replacement=True, generator=generator)
        tokens, states = [torch.full((rows,), self.n_tokens)], [state]
        leaving = self.T.permute(1, 0, 2).flatten(1)
        for _ in range(positions - 1):
            step = torch.multinomial(leaving[state], 1, generator=generator)[:, 0]
            state = step % self.n_states
            tokens.append(step // self.n_states)
            states.append(state)
        token = torch.stack(tokens, 1)
        return HiddenRows(token, torch.stack(states, 1), self.beliefs(token).float())

    def beliefs(self, tokens: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos states"]:
        """Posterior over the state that emits next, after each position.

        Raises:
            UserError: a token that cannot follow those before it.
        """
        belief = self.start.expand(len(tokens), -1)
        found = [belief]
        for token in tokens[:, 1:].T:
            belief = torch.einsum("ri,rij->rj", belief, self.T[token])
            mass = belief.sum(1, keepdim=True)
            if bool((mass <= 0).any()):
                raise UserError(f"The process {self.name} cannot emit what these rows say it did")
            belief = belief / mass
            found.append(belief)
        return torch.stack(found, 1)

    def predict(
        self, beliefs: Float[Tensor, "rows pos states"]
    ) -> Float[Tensor, "rows pos tokens"]:
        """Probability of every next token."""
        return beliefs.double() @ self.T.sum(2).T

    def best_ce(self, rows: HiddenRows) -> Float[Tensor, " predictions"]:
        """Nats per token of the optimal predictor on these rows, position by position.

        Its limit in the number of positions, and then of rows, is the entropy rate.
        """
        said = self.predict(self.beliefs(rows.tokens))[:, :-1]
        return -said.gather(2, rows.tokens[:, 1:, None])[:, :, 0].log().mean(0)

    def context_free_ce(self) -> float:
        """Nats per token of a predictor that knows how frequent tokens are and nothing else."""
        share = self.start @ self.T.sum(2).T
        return -(share * share.clamp_min(1e-300).log()).sum().item()

    def last_token_ce(self) -> float:
        """Nats per token of one that knows the last token alone."""
        after = torch.einsum("i,vij->vj", self.start, self.T)
        share = after.sum(1)
        said = (after / share[:, None].clamp_min(1e-300)) @ self.T.sum(2).T
        return -(share[:, None] * said * said.clamp_min(1e-300).log()).sum().item()

    def entropy_rate(self, *, rows: int = 256, positions: int = 512, seed: int = 0) -> float:
        """Nats per token, over the second half of long rows (exact but for which rows they are)."""
        return self.best_ce(self.draw(rows, positions, seed=seed))[positions // 2 :].mean().item()


def mess3(*, alpha: float = 0.85, x: float = 0.05) -> HiddenMarkov:
    """Three states that like to stay and mostly, but not only, emit their own token.

    The reachable beliefs form a fractal (Marzen & Crutchfield 2017; Shai et al. 2024 train on it).
    """
    beta, stay = (1 - alpha) / 2, 1 - 2 * x
    move = torch.full((3, 3), x).fill_diagonal_(stay)
    emit = torch.full((3, 3), beta).fill_diagonal_(alpha)
    return HiddenMarkov(torch.einsum("ij,vj->vij", move, emit), name="mess3")


def sparse_hmm(
    *, states: int = 12, tokens: int = 8, ways: int = 3, seed: int = 0, name: str = "sparse"
) -> HiddenMarkov:
    """Each state goes to few others, and every token is emitted by several states.

    With fewer tokens than states a token never tells its state: the context has to.
    """
    generator = seeded(WORLD, seed)
    move = _few(states, states, ways, generator)
    ring = torch.arange(states)
    # A ring through all states keeps every one of them within reach.
    move[ring, (ring + 1) % states] += 0.2
    emit = torch.zeros(states, tokens)
    emit[ring, torch.arange(states) % tokens] = 0.7
    emit[ring, torch.randint(tokens, (states,), generator=generator)] += 0.3
    move = move / move.sum(1, keepdim=True)
    return HiddenMarkov(torch.einsum("iv,ij->vij", emit, move), name=name)


def nested_hmm(
    *, topics: int = 3, leave: float = 0.03, keep: float = 0.9, own: float = 0.85
) -> HiddenMarkov:
    """Topics that seldom change, each with as many member states; state `topic * topics + member`.

    Member m mostly emits token m, in every topic alike; topic s moves m on to m + s (modulo their
    number) with probability `keep`. A topic shows in nothing but the order of what is said.
    """
    n = topics
    move = torch.full((n * n, n * n), leave / (n * n - n))
    ring = torch.arange(n)
    for topic in range(n):
        within = torch.full((n, n), (1 - keep) / (n - 1))
        within[ring, (ring + topic) % n] = keep
        block = slice(topic * n, (topic + 1) * n)
        move[block, block] = (1 - leave) * within
    emit = torch.full((n, n), (1 - own) / (n - 1)).fill_diagonal_(own).repeat(n, 1)
    return HiddenMarkov(torch.einsum("iv,ij->vij", emit, move), name="nested")


def topic_of(states: Int[Tensor, "*at"], *, topics: int = 3) -> Int[Tensor, "*at"]:
    """The topic that a state of `nested_hmm` belongs to."""
    return states // topics


def _few(rows: int, columns: int, ways: int, generator: torch.Generator) -> Tensor:
    """Rows that sum to one over `ways` random columns."""
    weight = 0.2 + torch.rand(rows, columns, generator=generator)
    order = torch.rand(rows, columns, generator=generator).argsort(1)
    weight[order >= ways] = 0.0
    return weight / weight.sum(1, keepdim=True)


def _stationary(move: Float[Tensor, "states states"]) -> Float[Tensor, " states"]:
    n = len(move)
    equations = torch.cat([move.T - torch.eye(n), torch.ones(1, n)]).double()
    wanted = torch.cat([torch.zeros(n), torch.ones(1)]).double()[:, None]
    found = torch.linalg.lstsq(equations, wanted).solution[:, 0].clamp_min(0)
    return found / found.sum()

"""The vLLM rollout engine: answers from a server in an interpreter of its own. vLLM is never imported here."""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist

from rest_megatron.actor.actor import Actor
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import MainOnly, Parallel
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import RequestRefused
from rest_megatron.rollout.vllm.delivery import Delivery
from rest_megatron.rollout.vllm.probe import Probe
from rest_megatron.rollout.vllm.publisher import Publisher, WeightFile
from rest_megatron.rollout.vllm.replies import Question, Sampling, ask, prompt_seed
from rest_megatron.rollout.vllm.server import Server
from rest_megatron.types import Request, Sample

logger = logging.getLogger(__name__)


class VLLMEngine:
    """`RolloutEngine` over HTTP. Only rank 0 talks to the server; every method is collective, the constructor too.

    Args:
        server: on rank 0, ready; None on all others.
        actor: whose weights are published.
        stop_token_ids: ids that end an answer.
        probe_prompts: token ids of the prompts that check every update, at least one.
    """

    def __init__(
        self,
        server: Server | None,
        actor: Actor,
        parallel: Parallel,
        config: Config,
        stop_token_ids: Sequence[int],
        probe_prompts: Sequence[Sequence[int]],
    ) -> None:
        self._parallel, self._watch = parallel, parallel.watch
        self._rollout = config.rollout
        self._sampling = Sampling.of(config.rollout, stop_token_ids, actor.policy.hf.vocab_size)
        self._probe = Probe(actor, config, self._sampling, probe_prompts)
        self._publisher = Publisher(actor, config, MainOnly(parallel, server))
        delivery = None if server is None else Delivery(server, config.rollout.sync_timeout)
        self._delivery = MainOnly(parallel, delivery)
        self._can_sleep = self._delivery.call(lambda delivery: delivery.can_sleep)
        self._asleep = False
        self._version: int | None = None

    def publish(self, version: int) -> None:
        """Sample from the actor's current weights from now on. Nothing is sent when the server has them already.

        Raises EngineError when they cannot be brought there, or the server does not sample from them afterwards, and
        Preempted before anything is sent: an update that has begun is finished.
        """
        if version != self._version or self._asleep:
            with self._watch.phase("publish"):
                self._parallel.poll()
                self._send(version)

    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int) -> list[list[Sample]]:
        """`group_size` answers to each request, the same lists on every rank.

        Answers that fail are asked for once more, after the weights have been sent again (and the server restarted
        where it does not take them). Raises EngineError after that, and at once for a request that the server refuses;
        Preempted, on all ranks, when one of them is to stop: requests under way are taken back.
        """
        version = self._version
        if version is None or self._asleep:
            raise RuntimeError("publish before generate: the server has no weights of the actor")
        questions = [
            Question(i, tuple(r.prompt_ids), group_size, r.max_new_tokens, prompt_seed(seed, r.number))
            for i, r in enumerate(requests)
        ]
        with self._watch.phase("rollout"):
            return self._answers(questions, version)

    def sleep(self) -> None:
        """Give back the accelerator's memory, where the server can, until the next `publish`."""
        if self._can_sleep and not self._asleep:
            self._delivery.call(self._put_to_sleep)
            self._asleep = True

    def close(self) -> None:
        """Nothing is held between calls; the server belongs to who opened it."""

    def _answers(self, questions: Sequence[Question], version: int) -> list[list[Sample]]:
        """The answers to each question, those that fail asked for once more."""
        replies = self._ask(questions, version)
        answers = {i: reply for i, reply in enumerate(replies) if not isinstance(reply, EngineError)}
        failed = [i for i in range(len(questions)) if i not in answers]
        if failed:
            self._recover([reply for reply in replies if isinstance(reply, EngineError)], len(questions), version)
            for i, reply in zip(failed, self._ask([questions[i] for i in failed], version), strict=True):
                if isinstance(reply, EngineError):
                    log = self._delivery.call(lambda delivery: delivery.log_excerpt())
                    raise EngineError(f"asked once more after a new update: {reply.args[0]}{log}")
                answers[i] = reply
        return [answers[i] for i in range(len(questions))]

    def _send(self, version: int) -> None:
        """The actor's weights to the server, whatever it has."""
        self._version = None
        with self._publisher.written(version) as files:
            if self._asleep and self._parallel.device.type == "cuda":
                torch.cuda.empty_cache()  # on every rank, before the server takes the memory again
                dist.barrier()
            samples = self._delivery.call(lambda delivery: self._deliver(delivery, files, version))
        self._asleep = False
        self._probe.check(
            samples, lambda: self._delivery.call(lambda delivery: self._sample_more(delivery, version)), version
        )
        self._version = version

    def _ask(self, questions: Sequence[Question], version: int) -> list[list[Sample] | EngineError]:
        """The answers to each question or why there are none, on every rank."""
        return self._delivery.call(lambda delivery: self._ask_here(delivery, questions, version))

    def _put_to_sleep(self, delivery: Delivery) -> None:
        with self._watch.patient():
            delivery.sleep()

    def _deliver(self, delivery: Delivery, files: Sequence[WeightFile], version: int) -> list[Sample]:
        seconds = self._rollout.sync_timeout
        with self._watch.patient():
            return delivery.deliver(
                files, version, lambda client: self._probe.sample(client, version, seconds), asleep=self._asleep
            )

    def _sample_more(self, delivery: Delivery, version: int) -> list[Sample]:
        with self._watch.patient():
            return self._probe.sample_more(delivery.client, version, self._rollout.sync_timeout)

    def _ask_here(
        self, delivery: Delivery, questions: Sequence[Question], version: int
    ) -> list[list[Sample] | EngineError]:
        seconds = self._rollout.generate_timeout
        answers = ask(delivery.client, questions, self._sampling, version, seconds, self._watch.check)
        try:
            with self._watch.patient():
                delivery.require_version(version)
        except EngineError as error:
            # What was sampled from other weights is no answer.
            return [group if isinstance(group, EngineError) else error for group in answers]
        return answers

    def _recover(self, errors: Sequence[EngineError], num_prompts: int, version: int) -> None:
        """Bring the server back to the actor's weights. Raises what no second attempt can mend."""
        for error in errors:
            if isinstance(error, RequestRefused):
                raise error
        if self._parallel.rank == 0:
            logger.warning(
                "%d of %d prompts got no proper answers; the weights are sent again, then these prompts. %s",
                len(errors),
                num_prompts,
                errors[0],
            )
        self._send(version)

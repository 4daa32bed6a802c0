package main

import (
	"context"
	"fmt"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
)

const scheduler = "system:serviceaccount:dream-engine:dream-scheduler"

// The policy that narrows the scheduler's right to patch pods, evaluated as an API server does: it has to let pass what the driver
// does (scheduler/scaling/fleet/kubernetes.ts) and nothing else.
func marking(versioned runtime.Object) []string {
	policy, ok := versioned.(*v1.ValidatingAdmissionPolicy)
	if !ok {
		return nil
	}
	validator, err := compile(policy)
	if err != nil {
		return []string{err.Error()}
	}
	cost := "controller.kubernetes.io/pod-deletion-cost"
	cases := []struct {
		what    string
		who     string
		allowed bool
		before  func(*corev1.Pod)
		change  func(*corev1.Pod)
	}{
		{"marks a worker", scheduler, true, nil, func(pod *corev1.Pod) { pod.Annotations[cost] = "-1" }},
		{"marks a worker without annotations", scheduler, true, func(pod *corev1.Pod) { pod.Annotations = nil }, func(pod *corev1.Pod) { pod.Annotations = map[string]string{cost: "-1"} }},
		{"takes a mark away", scheduler, true, func(pod *corev1.Pod) { pod.Annotations[cost] = "-1" }, func(pod *corev1.Pod) { delete(pod.Annotations, cost) }},
		{"changes another annotation", scheduler, false, nil, func(pod *corev1.Pod) { pod.Annotations["note"] = "other" }},
		{"removes another annotation", scheduler, false, nil, func(pod *corev1.Pod) { delete(pod.Annotations, "note") }},
		{"adds another annotation", scheduler, false, nil, func(pod *corev1.Pod) { pod.Annotations["more"] = "" }},
		{"changes the image", scheduler, false, nil, func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = "other" }},
		{"changes a label", scheduler, false, nil, func(pod *corev1.Pod) { pod.Labels["dream-engine/model"] = "other" }},
		{"changes who owns it", scheduler, false, nil, func(pod *corev1.Pod) { pod.OwnerReferences = nil }},
		{"adds a finalizer", scheduler, false, nil, func(pod *corev1.Pod) { pod.Finalizers = []string{"example.com/keep"} }},
		{"marks a gateway", scheduler, false, func(pod *corev1.Pod) { pod.Labels["app.kubernetes.io/component"] = "gateway" }, func(pod *corev1.Pod) { pod.Annotations[cost] = "-1" }},
		{"of anybody else changes the image", "system:serviceaccount:kube-system:anybody", true, nil, func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = "other" }},
	}
	var problems []string
	for _, each := range cases {
		before := workerPod()
		if each.before != nil {
			each.before(before)
		}
		after := before.DeepCopy()
		each.change(after)
		message, allowed := decide(validator, before, after, each.who)
		if allowed != each.allowed {
			problems = append(problems, fmt.Sprintf("%s: expected allowed %t, got %t %s", each.what, each.allowed, allowed, message))
		}
	}
	return problems
}

func compile(policy *v1.ValidatingAdmissionPolicy) (validating.Validator, error) {
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return nil, err
	}
	options := cel.OptionalVariableDeclarations{HasAuthorizer: true}
	var variables []cel.NamedExpressionAccessor
	for _, variable := range policy.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: variable.Name, Expression: variable.Expression})
	}
	compiler.CompileAndStoreVariables(variables, options, environment.StoredExpressions)
	var conditions, validations []cel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	for _, each := range policy.Spec.Validations {
		validations = append(validations, &validating.ValidationCondition{Expression: each.Expression, Message: each.Message})
	}
	fail := v1.Fail
	matcher := matchconditions.NewMatcher(compiler.CompileCondition(conditions, options, environment.StoredExpressions), &fail, "policy", "validate", policy.Name)
	none := compiler.CompileCondition(nil, options, environment.StoredExpressions)
	return validating.NewValidator(compiler.CompileCondition(validations, options, environment.StoredExpressions), matcher, none, none, &fail, nil), nil
}

func decide(validator validating.Validator, before, after *corev1.Pod, who string) (string, bool) {
	kind := corev1.SchemeGroupVersion.WithKind("Pod")
	resource := corev1.SchemeGroupVersion.WithResource("pods")
	record := admission.NewAttributesRecord(after, before, kind, after.Namespace, after.Name, resource, "", admission.Update, &metav1.PatchOptions{}, false, &user.DefaultInfo{Name: who})
	attributes := &admission.VersionedAttributes{Attributes: record, VersionedKind: kind, VersionedObject: admission.NewLazyObject(after), VersionedOldObject: admission.NewLazyObject(before)}
	result := validator.Validate(context.Background(), resource, attributes, nil, &corev1.Namespace{}, celconfig.RuntimeCELCostBudget, nil)
	for _, decision := range result.Decisions {
		if decision.Action != validating.ActionAdmit {
			return decision.Message, false
		}
	}
	return "", true
}

func workerPod() *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:            "dream-worker-m-7d4b9c6f5-abcde",
			Namespace:       "dream-engine",
			Labels:          map[string]string{"app.kubernetes.io/component": "worker", "dream-engine/model": "m"},
			Annotations:     map[string]string{"note": "mine"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "dream-worker-m-7d4b9c6f5", UID: "1", Controller: &yes}},
		},
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Name: "worker", Image: "dream-engine-worker"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.2.3"},
	}
}
